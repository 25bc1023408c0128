"""Tables of measurements at 80 columns, and without a terminal: nothing cut, no name read as markup."""

import io

import pytest
from rich.console import Console

from sdpl.runtime.tables import environment_table, latency_table


def printed(table, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def measured(side="sdpl", stable=True, **values):
    times = {"p50_ms": 1234.56, "p95_ms": 2345.67, "p99_ms": 34567.89, "spread": 53.18, "images_per_s": 123456.7}
    row = {"side": side, "boundary": "end to end", "batch": 128, "callers": 64, "clock_mhz": "2596", "stable": stable}
    return {**row, **times, **values}


def result(*rows, target="cpu:fp32"):
    return {
        "target": target,
        "backend": {"library": "onnxruntime 1.32.0", "threads": "2 threads"},
        "environment": {"cpu": "A CPU [red] with a long name"},
        "image_size": 448,
        "categories": 80,
        "peak_memory_mb": 1122,
        "gpu_used_mb": None,
        "latencies": list(rows),
    }


def test_measurements_fit_80_columns_with_units_and_nothing_cut():
    text = printed(latency_table(result(measured(stable=False), measured("pytorch channels_last"))))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("p50 ms", "p95 ms", "p99 ms", "images/s", "1234.56", "34567.89", "123456.7", "5318.0% *"):
        assert word in text
    assert text.count("p50 ms") == 1
    for word in ("sdpl, end to end", "pytorch channels_last, end to end", "[red]"):
        assert word in text


def test_the_environment_fits_too_and_hints_keep_their_brackets():
    found = {
        "gpus": [],
        "gpu": "no CUDA GPU was found [bold]",
        "cpu": "x",
        "cores": 2,
        "packages": {"a": "1"},
        "sdpl": "1",
    }
    hint = 'pip install ".[cuda]" in a checkout'
    text = printed(environment_table({**found, "python": "3", "backends": {"tensorrt": hint}}), 80)
    assert hint in text
    assert "[bold]" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["[red]", "[/]", "q" * 120])
def test_category_names_are_never_markup_and_never_cut(name):
    from sdpl.evaluate.evaluation import Evaluation
    from sdpl.evaluate.tables import evaluation_tables

    fields = dict.fromkeys(Evaluation.__dataclass_fields__, 0.0) | {"f1": {}, "f1_top3": {}, "ap": {name: 12.5}}
    text = "".join(printed(table) for table in evaluation_tables(Evaluation(**fields)))
    assert name in text or text.count("q") == 120  # folded
    assert "…" not in text
