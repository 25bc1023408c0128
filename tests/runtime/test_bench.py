import json

import numpy as np
import pytest

from sdpl.runtime.bench import measure, summarise


def test_percentiles_and_throughput():
    row = summarise("model", 4, np.arange(1.0, 102.0), warmup_runs=3)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == (51, 96, 100)
    assert row.images_per_s == pytest.approx(1000 * 4 / 51)
    assert row.spread == pytest.approx(50 / 51)
    assert not row.stable
    assert summarise("model", 1, np.full(10, 5.0), 2).stable


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


@pytest.mark.parametrize("batch", ["0", "1,x", "", "-1", "1,100000000"])
def test_bad_batch_sizes(fails, bundle, batch):
    assert "expected batch sizes up to 1024, such as 1,8,32" in fails("bench", bundle, "--batch", batch)
