"""Text is UTF-8 whatever the locale, and names that the terminal or the system cannot take end no command wrongly."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdpl
from configs import write_config

NAMES = ["日本", "é", "ß", "four", "ж", "\U0001f600", "seven", "eight", "não", "ten"]
ASCII = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "", "PYTHONPATH": str(Path(sdpl.__file__).parents[1])}

ONE_AFTER_ANOTHER = """
import itertools, sys
from sdpl.cli import main
for is_end, words in itertools.groupby(sys.argv[1:], key="then".__eq__):
    if not is_end:
        try:
            main(list(words))
        except SystemExit as end:
            if end.code:
                raise
"""


def text_calls_without_encoding(source: str) -> list[int]:
    """The lines of calls that open text in the locale's encoding. (ruff's rule for it misses paths of unknown type.)"""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        mode = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str) and m.value]
        is_open = name == "fdopen" or (isinstance(node.func, ast.Name) and name == "open")
        is_text = is_open and not any(set(m) <= set("rwaxb+") and "b" in m for m in mode)
        if is_text or (name in ("read_text", "write_text") and not (name == "read_text" and node.args)):
            found.append(node.lineno)
    return found


def test_the_check_of_calls_finds_them():
    bad = "open(p)\np.read_text()\np.write_text(t)\nopen(p, 'w')\nos.fdopen(1, 'w')"
    good = "open(p, 'rb')\np.read_text('utf-8')\np.write_text(t, encoding='utf-8')\nopen(p, 'x', encoding='utf-8')"
    assert text_calls_without_encoding(bad) == [1, 2, 3, 4, 5]
    assert text_calls_without_encoding(good) == []


def test_text_files_name_their_encoding():
    sources = {path: path.read_text(encoding="utf-8") for path in Path(sdpl.__file__).parent.rglob("*.py")}
    assert {str(path): text_calls_without_encoding(source) for path, source in sources.items()} == {
        str(path): [] for path in sources
    }


@pytest.fixture
def foreign(scenes, tmp_path):
    """A folder with a configuration whose categories have names of many scripts."""
    for split in ("train", "test"):
        shutil.copytree(scenes / split, tmp_path / split)
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    write_config(tmp_path, tmp_path, train={"epochs": 1})
    return tmp_path


@pytest.fixture
def hostile(foreign):
    """hostile(words): runs commands there, with "then" between them, in an ASCII locale without UTF-8 mode; what they
    say. One process for all: most of a command's time is its imports."""

    def run(*words: str, status: int = 0) -> str:
        command = [sys.executable, "-c", ONE_AFTER_ANOTHER, *words]
        ended = subprocess.run(command, cwd=foreign, env={**os.environ, **ASCII}, capture_output=True, timeout=300)
        assert ended.returncode == status, ended.stderr.decode()
        return (ended.stdout if status == 0 else ended.stderr).decode("utf-8")

    return run


@pytest.mark.slow
def test_every_command_works_in_an_ascii_locale(hostile, foreign):
    test = "annotations/instances_test.json"
    train = ("train", "config.yaml", "--out", "rün", "--report", "r.html")
    hostile(*train, "then", "export", "rün/model.ckpt", "--out", "b.sdpl", "--target", "cpu:fp32")
    manifest = json.loads((foreign / "b.sdpl" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["categories"] == NAMES
    predict = ("predict", "b.sdpl", "test")
    shown = (*predict, "--top", "10", "then", *predict, "--out", "p.csv")
    assert "cpu:fp32: 6 images" in hostile("info", "b.sdpl", "then", "verify", "b.sdpl")
    assert "日本 0." in hostile(*shown)
    with open(foreign / "p.csv", encoding="utf-8", newline="") as stream:
        assert set(NAMES) < set(next(csv.reader(stream)))
    hostile("eval", "b.sdpl", test, "--report", "e.html", "--json", "e.json")
    assert "日本" in (foreign / "e.html").read_text(encoding="utf-8")
    hostile("score", "b.sdpl", "test", "--out", "scores")
    words = []
    for name in ("m.csv", "m.jsonl", "m.parquet"):
        words += ["data", "mask", test, "--proportion", "0.5", "--out", name, "then"]
        words += ["data", "check", name, "then"]
    hostile(*words)


def test_a_file_name_that_the_locale_cannot_say_is_one_line(hostile, foreign):
    path = foreign / "annotations" / "instances_test.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "ü.jpg"
    path.write_text(json.dumps(content), encoding="utf-8")
    message = hostile("data", "check", "annotations/instances_test.json", status=2)
    assert message.count("\n") == 1
    assert "cannot name a file where the locale's encoding is ascii; set PYTHONUTF8=1" in message


def test_a_folder_whose_name_is_not_utf8(sdpl, scenes, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    labels = scenes / "annotations" / "instances_test.json"
    for name in ("m.csv", "m.jsonl", "m.parquet"):
        assert sdpl("data", "mask", labels, "--proportion", "0.5", "--out", folder / name).exit_code == 0
        assert sdpl("data", "check", folder / name, "--images", scenes / "test").exit_code in (0, 1)
