"""A sweep: every run once, a stopped one goes on, and the table says what came out."""

import json

import pytest
import yaml

import sdpl.train.sweep as sweep

METHODS = {"CoOp": {"model": {"prompts": "shared", "decoupling": "none"}}, "full": {}}


@pytest.fixture
def sweep_file(config, scenes, tmp_path):
    """sweep_file(key=value) -> the path of a sweep of two methods at two proportions with one seed."""

    def write(**changes):
        config(data={"cache": "cache"}, train={"epochs": 1})
        values = {
            "base": "config.yaml",
            "test": {"annotations": str(scenes / "annotations" / "instances_test.json")},
            "methods": METHODS,
            "proportions": [0.5, 0.9],
            "seeds": [3],
        }
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**values, **changes}))
        return tmp_path / "sweep.yaml"

    return write


@pytest.mark.slow
def test_runs_everything_once_and_goes_on_after_a_stop(sdpl, fails, sweep_file, tmp_path, monkeypatch):
    path, out = sweep_file(figures={"table4": ["CoOp", "full"]}), tmp_path / "out"
    original, calls = sweep.train, []

    def stops_at_the_second(config, folder, *rest, **options):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(config, folder, *rest, **options)

    monkeypatch.setattr(sweep, "train", stops_at_the_second)
    assert "interrupted; the same command goes on" in fails("sweep", path, "--out", out, status=130)
    result = sdpl("sweep", path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "4 runs, 1 of them finished before" in result.stderr
    assert len(calls) == 5
    rows = json.loads((out / "results.json").read_text())
    assert [(r["method"], r["proportion"], r["seed"]) for r in rows] == [
        (m, p, 3) for m in ("CoOp", "full") for p in (0.5, 0.9)
    ]
    assert all(0 < row["mAP"] <= 100 for row in rows)
    saved = json.loads((out / "coop" / "0.5-seed3" / "result.json").read_text())["config"]
    assert (saved["data"]["known_proportion"], saved["data"]["mask_seed"], saved["train"]["seed"]) == (0.5, 3, 3)
    assert (saved["model"]["prompts"], saved["model"]["joint_dim"]) == ("shared", 24)
    assert not list(out.rglob("*.ckpt"))
    assert (out / "table4.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text().startswith("| method | mAP 50% | mAP 90% | average mAP |")
    assert len(list((tmp_path / "cache").glob("*.maps"))) == 2  # train and held-out share one, test has its own

    sweep_file(methods={"CoOp": {}, "full": {}})
    message = fails("sweep", path, "--out", out)
    assert "is of another configuration (model.decoupling: 'none' -> 'semantic'; model.prompts:" in message
    sweep_file()
    (out / "coop" / "0.5-seed3" / "result.json").write_text("{}")
    assert "is damaged; delete it" in fails("sweep", path, "--out", out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": {"a": {"model": {"promts": "shared"}}}},
            "method 'a': unknown key 'model.promts'; did you mean",
        ),
        ({"methods": {"a b": {}, "A-B": {}}}, "have names that differ in signs or case only"),
        ({"methods": {}}, "methods = {}: "),
        ({"proportions": [0.5, 2]}, "proportions.1 = 2: "),
        ({"figures": {"x": ["CoOP"]}}, "figures name methods that are not in the sweep: CoOP"),
        ({"prportions": [1]}, "unknown key 'prportions'; did you mean 'proportions'?"),
        ({"base": "gone.yaml"}, "gone.yaml: no such configuration file"),
    ],
)
def test_a_wrong_sweep_is_named_before_anything_runs(fails, sweep_file, tmp_path, change, message):
    assert message in fails("sweep", sweep_file(**change), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_sweep(fails, tmp_path):
    assert "no such configuration file" in fails("sweep", tmp_path / "gone.yaml", "--out", tmp_path / "out")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "is not a mapping; it needs at least base" in fails("sweep", tmp_path / "list.yaml", "--out", tmp_path)
