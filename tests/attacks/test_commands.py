"""What nobody foresaw, and text that would act on a terminal."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpl.cli import unforeseen
from sdpl.errors import UserError
from sdpl.text import counted, divided, escaped, joined, name_problem, path_problem, printable, shortened


def test_an_unforeseen_error_is_one_line_and_a_report(sdpl, monkeypatch, tmp_path, bundle, scenes):
    def fails(path):
        raise LookupError("nobody thought of this")

    monkeypatch.setattr("sdpl.bundle.Bundle.open", fails)
    monkeypatch.chdir(tmp_path)
    result = sdpl("predict", bundle, scenes / "test")
    assert result.exit_code == 70
    (line,) = result.stderr.splitlines()
    (report,) = tmp_path.glob("sdpl-error-*.txt")
    assert line.startswith("error: LookupError in sdpl predict, which sdpl did not foresee; the report ")
    assert report.name in line
    text = report.read_text()
    for part in ("command: sdpl predict", "numpy: ", "Traceback", "nobody thought of this"):
        assert part in text
    assert str(scenes) not in text.splitlines()[0]


def test_a_report_goes_where_it_can(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unforeseen.Path, "cwd", lambda: tmp_path / "gone")
    monkeypatch.setattr(unforeseen.tempfile, "gettempdir", lambda: str(tmp_path))
    assert unforeseen.write_report(ValueError("x"), "info").parent == tmp_path
    monkeypatch.setattr(unforeseen.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert "no report could be written" in unforeseen.explain(ValueError("x"), "info")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (MemoryError(), 2)])
def test_stops_and_lack_of_memory_are_one_line(sdpl, monkeypatch, bundle, scenes, error, status):
    def fails(path):
        raise error

    monkeypatch.setattr("sdpl.bundle.Bundle.open", fails)
    result = sdpl("predict", bundle, scenes / "test")
    assert (result.exit_code, len(result.stderr.splitlines())) == (
        {True: 130, False: 2}[type(error) is KeyboardInterrupt],
        1,
    )


def test_sigterm_cleans_up(tmp_path):
    code = f"""
import os, signal, click
from pathlib import Path
from sdpl.cli.command import Command
from sdpl.files import replace_file
@click.command("x", cls=Command)
def command():
    with replace_file(Path({str(tmp_path / "a")!r})):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
command()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "error: interrupted; nothing half-written is left.\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stop_of_which_a_library_made_another_error_is_a_stop(tmp_path):
    code = """
import os, signal, click
from sdpl.cli.command import Command
from sdpl.errors import UserError
@click.command("x", cls=Command)
def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        raise UserError("a part cannot be loaded.") from None
command()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "error: interrupted; nothing half-written is left.\n")


def test_a_message_is_one_bounded_line_without_effect():
    error = UserError("name\n\x1b[31m " + "x" * 10_000 + " \udcff\u202e: fix it.")
    assert len(str(error)) <= 390
    assert str(error).startswith(r"name \x1b[31m xxx")
    assert str(error).endswith(r"x \xff\u202e: fix it.")
    str(error).encode()
    assert shortened("short") == "short"
    assert escaped("[bold]") == r"\[bold]"
    assert printable("日本語 é") == "日本語 é"


def test_what_can_be_a_name_and_a_path():
    assert name_problem("fire hydrant") is None
    assert "control character" in name_problem("a\tb")
    assert "10,000 characters" in name_problem("a" * 10_000)
    assert path_problem("a/b c.jpg") is None
    assert path_problem(os.fsdecode(b"\xff.jpg")) is None  # a file name that is no UTF-8
    for path in ("a\0b", "a" * 256, "é" * 128, "\ud800", "a/" * 3000):
        assert path_problem(path)


def test_names_that_are_not_utf8_are_escaped_alike_everywhere(sdpl, bundle, scenes, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    good, bad, out = folder / os.fsdecode(b"\xff[red].jpg"), folder / "bad.jpg", folder / "out"
    good.write_bytes(next((scenes / "test").iterdir()).read_bytes())
    bad.write_bytes(b"x")
    shown = [f"{tmp_path}/caf\\xe9/" + name for name in ("bad.jpg", r"\xff[red].jpg")]
    result = sdpl("predict", bundle, folder, "--save", out / "drawn")
    assert result.stdout.startswith(f"{shown[1]}: ")
    assert f"error: {shown[0]}: is not an image" in result.stderr
    assert [path.name for path in (out / "drawn").iterdir()] == [r"\xff[red].png"]
    assert json.loads(sdpl("predict", bundle, good, "--json").stdout)["image"] == shown[1]
    for name in ("a.csv", "a.jsonl"):
        sdpl("predict", bundle, folder, "--out", out / name)
    assert [row["image"] for row in csv.DictReader((out / "a.csv").read_text().splitlines())] == shown
    assert [json.loads(line)["image"] for line in (out / "a.jsonl").read_text().splitlines()] == shown
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(good, os.fsdecode(b"\xfe.jpg"))
    assert sdpl("score", bundle, folder, "--out", out).exit_code == 0
    assert "finished by earlier runs: 2 shards" in sdpl("score", bundle, folder, "--out", out).stdout
    tables = [pq.read_table(pa.py_buffer(path.read_bytes())) for path in sorted(out.glob("shard-*"))]
    found = [row for table in tables for row in table.to_pylist()]
    assert [row["key"] for row in found] == [*shown, r"\xfe"]
    assert [row["error"] is None for row in found] == [False, True, True]
    inputs = pq.read_table(pa.py_buffer((out / "inputs.parquet").read_bytes()))["location"].to_pylist()
    assert inputs == [*shown, f"{tmp_path}/caf\\xe9/a.tar"]


def test_a_path_that_cannot_be_is_refused_by_every_option(sdpl):
    assert "'' is empty" in sdpl("info", "").stderr
    assert "'' is empty" in sdpl("predict", "b", "a.jpg", "--save", "").stderr
    assert "--out '' is empty" in sdpl("score", "b", "a.jpg", "--out", "").stderr
    result = sdpl("info", "a" * 300)
    assert result.exit_code == 2
    assert "is longer than a path can be" in result.stderr


@pytest.mark.parametrize("names", [["cat", "fire hydrant"], ["a|b", "c"], ["a\\", "b"], ["a\\|b", "c\\\\"], []])
def test_names_in_one_cell_come_back(names):
    assert divided(joined(names)) == names


def test_a_cell_of_names_as_people_write_it():
    assert divided(r" cat | |C:\dogs|") == ["cat", r"C:\dogs"]
    assert (counted(1), counted(1200), counted(0, "image", "images")) == ("1 category", "1,200 categories", "0 images")
