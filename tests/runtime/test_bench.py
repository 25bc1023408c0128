import json
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sdpl.runtime import bench
from sdpl.runtime.bench import measure, measure_callers, summarize


def test_percentiles_and_throughput():
    times = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    row = summarize("model", 4, times, warmup_runs=3)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == (51, 96, 100)
    assert row.images_per_s == pytest.approx(1000 * 4 / 51)
    assert row.spread == pytest.approx(50 / 51)
    assert not row.stable
    assert summarize("model", 1, np.full(10, 5.0), 2).stable


def test_a_machine_that_slows_down_is_not_stable():
    row = summarize("model", 1, np.linspace(5.0, 5.7, 100), 2)
    assert row.spread < 0.1
    assert row.drift == pytest.approx(0.065, abs=0.01)
    assert not summarize("model", 1, np.r_[np.full(50, 5.0), np.full(49, 5.6)], 2).stable


def test_callers_call_at_once_and_their_images_are_counted_together():
    inside, most = [], []

    def call():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    times, _ = measure_callers(call, callers=3, seconds=0.05)
    assert max(most) == 3
    assert len(times) >= 30
    assert summarize("model", 2, np.full(10, 5.0), 2, callers=3).images_per_s == pytest.approx(1200)


def test_throughput_counts_the_calls_that_really_happened():
    """One caller gets through in 1 ms, three wait for it: the median alone would promise 4000 calls a second."""
    times = np.r_[np.full(900, 1.0), np.full(100, 31.0)]
    assert summarize("model", 1, times, 2, callers=4).images_per_s == pytest.approx(1000)


def test_warm_up_is_not_counted_and_enough_runs_are():
    calls = []
    times, warmup_runs = measure(lambda: calls.append(1), seconds=1e-9, min_runs=10)
    assert len(times) == 10
    assert warmup_runs == 2
    assert len(calls) == 12


def test_command_measures_every_boundary_and_batch(sdpl, bundle, tmp_path):
    result = sdpl("bench", bundle, "--batch", "1,3", "--seconds", "0.05", "--json", tmp_path / "b.json")
    assert result.exit_code == 0
    report = json.loads((tmp_path / "b.json").read_text())
    rows = [(row["boundary"], row["batch"]) for row in report["latencies"]]
    assert rows == [("model", 1), ("end to end", 1), ("model", 3), ("end to end", 3)]
    for row in report["latencies"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["runs"] >= 10
    assert report["environment"]["cpu"]
    assert report["backend"]["provider"] == "CPUExecutionProvider"
    assert "end to end" in result.stdout


@pytest.mark.slow
def test_pytorch_is_measured_in_the_same_run_and_drawn(sdpl, gpu_bundle, checkpoint, tmp_path):
    words = ["--batch", "1", "--seconds", "0.01", "--callers", "1,2", "--backend", "cpu:fp32"]
    words += ["--against", checkpoint, "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    result = sdpl("bench", gpu_bundle, *words)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    sides = {row["side"] for row in report["latencies"]}
    assert sides == {"sdpl", "pytorch eager", "pytorch channels_last", "pytorch compiled"}
    assert {row["callers"] for row in report["latencies"]} == {1, 2}
    assert report["target"] == "cpu:fp32"
    assert report["peak_memory_mb"] > 10
    assert {"clock_mhz", "drift"} <= set(report["latencies"][0])
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize("batch", ["0", "1,x", "", "-1", "1,100000000"])
def test_bad_batch_sizes(fails, bundle, batch):
    assert "expected numbers up to 1024, such as 1,8,32" in fails("bench", bundle, "--batch", batch)


def test_a_plot_without_matplotlib_is_said_before_anything_is_measured(fails, bundle, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench, "benchmark_bundle", lambda *a, **k: pytest.fail("measured first"))
    assert "pictures need matplotlib" in fails("bench", bundle, "--plot", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rates", "5"), "--rates is about a server: name it with --url"),
        (("--input", "jpeg"), "--input is about a server"),
        (("--url", "http://127.0.0.1:9", "--against", "m.ckpt"), "--against is measured beside BUNDLE alone"),
    ],
)
def test_an_option_that_would_be_ignored_is_named(fails, bundle, words, message):
    assert message in fails("bench", bundle, *words)
