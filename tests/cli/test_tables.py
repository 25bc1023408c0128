"""Tables at any width of the terminal: every number is whole."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Group
from rich.table import Table

from sdpl.cli.tables import show
from sdpl.data.images import LabelledImages
from sdpl.evaluate.evaluation import evaluate
from sdpl.evaluate.tables import evaluation_tables
from sdpl.runtime.tables import latency_table
from sdpl.server.load_table import load_table
from sdpl.train.sweep_report import Result, table

NAME = "a-name-of-one-very-long-word-that-no-narrow-terminal-holds"
LATENCY = {"p50_ms": 12345.67, "p95_ms": 12346.78, "p99_ms": 12347.89, "images_per_s": 98765.4, "spread": 0.123}
ROW = LATENCY | {"side": "sdpl", "boundary": "pixels in memory", "batch": 1024, "callers": 64, "stable": False}
LOAD = {"loop": "open", "offered_per_s": 1234.5, "answered_per_s": 1198.7, "refused": 35, "errors": 0, "unsent": 77}


def latencies():
    environment = {"cpu": "a processor", "gpu": None}
    row = ROW | {"clock_mhz": 3000}
    return latency_table(
        {"backend": {"library": "engine 1.2.3"}, "environment": environment, "latencies": [row], "image_size": 448}
        | {"categories": 80, "target": "cpu:fp32", "peak_memory_mb": 1234, "gpu_used_mb": None}
    ), ("12345.67", "12346.78", "12347.89", "98765.4", "12.3%", "1024")


def loads():
    row = LOAD | {name: LATENCY[name] for name in ("p50_ms", "p95_ms", "p99_ms")}
    content = load_table({"url": "http://host:1", "model": NAME, "platform": "x", "loads": [row]})
    return content, ("1198.7", "1234.5/s", "77", "35")


def evaluation():
    scores, labels = np.linspace(0, 1, 24).reshape(12, 2), np.tile([[1, -1], [-1, 1]], (6, 1))
    result = evaluate(scores, LabelledImages((Path("x.jpg"),) * 12, labels, (NAME, "b")))
    return Group(*evaluation_tables(result)), (f"{result.mAP:.2f}", f"{result.ap['b']:.2f}")


def sweep():
    results = [
        Result(NAME, p, s, *(100 / (3 + s + p + i) for i in range(6))) for p in np.arange(1, 10) / 10 for s in (0, 1)
    ]
    return table(results, "runs"), (f"{np.mean([100 / 3.1, 100 / 4.1]):.2f}",)


@pytest.mark.parametrize("width", [1, 40, 80])
@pytest.mark.parametrize("made", [latencies, loads, evaluation, sweep])
def test_numbers_are_whole_and_names_may_be_cut(made, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    content, numbers = made()
    show(content)
    out = capsys.readouterr().out
    for number in numbers:
        assert number in out


def test_a_table_that_fits_is_as_wide_as_the_terminal_allows(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    content = Table()
    content.add_column("category", overflow="fold")
    content.add_column("AP", justify="right")
    content.add_row(NAME, "12.34")
    show(content)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {40}
