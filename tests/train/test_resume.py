"""Going on with a run by what it means: what does not change what is learned may differ, and is said."""

import json
import shutil

import pytest
import torch

from sdpl.train.checkpoint import load_checkpoint


@pytest.mark.slow
def test_more_epochs_other_workers_and_moved_folders_go_on(sdpl, config, scenes, run_folder, tmp_path):
    copy, moved = shutil.copytree(run_folder, tmp_path / "copy"), shutil.copytree(scenes, tmp_path / "moved")
    data = {"workers": 1, "train": {"annotations": str(moved / "annotations" / "instances_train.json")}}
    result = sdpl("train", config(data=data, train={"epochs": 3, "accumulate": 2}), "--out", copy, "--resume")
    assert result.exit_code == 0, result.output
    for said in (
        "data.workers: 2 -> 1",
        "train.epochs: 2 -> 3",
        "train.accumulate: 1 -> 2",
        "data.train.annotations: ",
    ):
        assert f"going on with other {said}" in result.stderr
    content = load_checkpoint(copy / "last.ckpt")
    assert content["resume"]["epoch"] == 3
    assert content["config"]["train"]["epochs"] == 3


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("train", {"lr": 0.5}, "train.lr: 0.002 -> 0.5"),
        ("train", {"batch_size": 4}, "train.batch_size: 8 -> 4"),
        ("data", {"known_proportion": 0.5}, "data.known_proportion: 1.0 -> 0.5"),
        ("model", {"weights": "openai"}, "model.weights: None -> 'openai'"),
        ("model", {"word_vectors": "glove-coco80"}, "model.word_vectors: 'clip' -> 'glove-coco80'"),
    ],
)
def test_what_changes_what_is_learned_is_refused(fails, config, run_folder, tmp_path, section, change, said):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    message = fails("train", config(**{section: change}), "--out", copy, "--resume")
    assert f"was trained with another configuration: {said}" in message
    assert "workers" not in message


@pytest.fixture
def other_categories(scenes, tmp_path):
    """The scenes with three categories fewer and one renamed, in another order."""
    content = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    kept = [c for c in content["categories"] if c["name"] not in ("zero", "four", "six")][::-1]
    ids = {c["id"] for c in kept}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    content["categories"] = [{**c, "name": "number nine" if c["name"] == "nine" else c["name"]} for c in kept]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    return {"annotations": str(path), "images": str(scenes / "train")}


@pytest.mark.slow
def test_a_new_run_starts_from_another_s_weights_by_names(
    sdpl, config, checkpoint, other_categories, tmp_path, monkeypatch
):
    names = ["nine", "eight", "seven", "five", "three", "two", "one"]
    settings = {"data": {"train": other_categories}, "train": {"epochs": 1, "lr": 1e-12, "warmup_lr": 1e-12}}
    result = sdpl("train", config(**settings), "--out", tmp_path / "run", "--init", checkpoint)
    assert result.exit_code == 0, result.output
    assert "6 of 7 categories keep their prompts and word vectors" in result.stderr
    assert "new categories: number nine" in result.stderr
    old, new = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert sorted(new["categories"]) == sorted(["number nine", *names[1:]])
    for name in names[1:]:
        there, here = old["categories"].index(name), new["categories"].index(name)
        torch.testing.assert_close(new["state"]["prompts.context"][here], old["state"]["prompts.context"][there])
        assert torch.equal(new["words"][here], old["words"][there])
    here = new["categories"].index("number nine")
    there = old["categories"].index("nine")
    assert not torch.allclose(new["state"]["prompts.context"][here], old["state"]["prompts.context"][there])
    key = "decoupling.image_projection.weight"
    torch.testing.assert_close(new["state"][key], old["state"][key])
    assert new["resume"]["epoch"] == 1


def test_weights_of_another_structure_are_refused(fails, config, checkpoint, tmp_path):
    out = tmp_path / "run"
    message = fails("train", config(model={"joint_dim": 16}), "--out", out, "--init", checkpoint)
    assert "has another shape" in message
    assert "take its model section" in message
    assert "leave out one of them" in fails("train", config(), "--out", out, "--init", checkpoint, "--resume")
    assert "no such checkpoint" in fails("train", config(), "--out", out, "--init", tmp_path / "gone.ckpt")
    assert not (out / "model.ckpt").exists()
