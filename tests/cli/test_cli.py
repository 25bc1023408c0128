"""The commands as a user meets them."""

import json
import shutil
import subprocess
import sys

import pytest

from sdpl.bundle import Bundle
from sdpl.install import install_line

COMMANDS = ("train", "sweep", "export", "eval", "predict", "score", "bench", "serve", "verify", "info", "demo", "data")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_in_both_spellings(sdpl, command):
    shown, short = sdpl(command, "--help"), sdpl(command, "-h")
    assert (shown.exit_code, short.exit_code) == (0, 0)
    assert shown.output == short.output
    script = subprocess.run([f"{sys.prefix}/bin/sdpl-{command}", "--help"], capture_output=True, text=True)
    assert script.returncode == 0
    assert "Usage: sdpl-" + command in script.stdout


def test_a_folder_called_sdpl_does_not_hide_the_package(tmp_path):
    """A checkout is often in one, and commands are run beside it."""
    (tmp_path / "sdpl").mkdir()
    run = [sys.executable, "-m", "sdpl", "--version"]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, text=True).stdout.startswith("sdpl, version ")


@pytest.mark.parametrize("kind", ["ckpt", "bundle"])
def test_eval_prints_and_writes_the_metrics(sdpl, checkpoint, bundle, scenes, tmp_path, kind):
    model = {"ckpt": checkpoint, "bundle": bundle}[kind]
    result = sdpl("eval", model, scenes / "annotations" / "instances_test.json", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["images"] == 8
    assert 0 < metrics["mAP"] <= 100
    assert list(metrics["f1"]) == ["OP", "OR", "OF1", "CP", "CR", "CF1"]
    assert list(metrics["f1_top3"]) == list(metrics["f1"])
    assert set(metrics["ap"]) == {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    for word in ("mAP", "OF1", "CF1 top-3", "seven"):
        assert word in result.stdout


def test_checkpoint_and_bundle_have_the_same_metrics(sdpl, checkpoint, bundle, scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_test.json"
    for name, model in (("a", checkpoint), ("b", bundle)):
        sdpl("eval", model, annotations, "--json", tmp_path / name)
    a, b = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert a["mAP"] == pytest.approx(b["mAP"], abs=1e-6)


def test_eval_names_what_is_wrong(fails, bundle, scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_test.json"
    content = json.loads(annotations.read_text())
    content["categories"][0]["name"] = "nought"
    (tmp_path / "renamed.json").write_text(json.dumps(content))
    message = fails("eval", bundle, tmp_path / "renamed.json", "--images", scenes / "test")
    assert "its categories are not those of the model or configuration (2 differ: nought, zero)" in message
    content = json.loads(annotations.read_text())
    content["annotations"] = []
    (tmp_path / "bare.json").write_text(json.dumps(content))
    assert "no image has a known positive label" in fails(
        "eval", bundle, tmp_path / "bare.json", "--images", scenes / "test"
    )
    assert "images are not in" in fails("eval", bundle, tmp_path / "bare.json")
    assert "no such checkpoint" in fails("eval", tmp_path / "gone.ckpt", annotations)


def test_train_names_what_is_wrong(fails, config, scenes, tmp_path):
    assert "no such configuration file" in fails("train", tmp_path / "gone.yaml", "--out", tmp_path / "run")
    gone = config(data={"train": {"annotations": str(tmp_path / "gone.json")}})
    assert "no such annotation file" in fails("train", gone, "--out", tmp_path / "run")
    rare = config(data={"known_proportion": 0.001})
    assert "no known label at all for" in fails("train", rare, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(name, *rest):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Missing)
from sdpl.cli import main
main(["export", "x.ckpt"])
"""


def test_a_missing_extra_is_named():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, f"error: this command needs torch: {install_line('train')}\n")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("predict", ["missing argument 'BUNDLE'. See sdpl predict --help."]),
        (
            "bench x --seconds -1",
            ["invalid value for '--seconds': -1.0 is not in the range x>0. See sdpl bench --help."],
        ),
        ("train x --resum", ["no such option", "--resum", "Did you mean", "--resume", "See sdpl train --help."]),
        ("data check x --format y", ["'--format': 'y' is not one of 'auto', 'coco', 'voc', 'csv', "]),
        ("data chek", ["no such command 'chek'"]),
        ("export x --batch", ["option '--batch' requires an argument."]),
    ],
)
def test_what_click_finds_wrong_is_one_line_with_its_suggestion(sdpl, words, parts):
    result = sdpl(*words.split())
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: ")
    assert all(part in result.stderr for part in parts)


def test_a_group_without_a_command_shows_its_help(sdpl):
    result = sdpl("data")
    assert result.exit_code == 2
    assert "Usage: sdpl data" in result.output


@pytest.mark.slow
def test_a_failing_script_prints_one_line_and_no_traceback(tmp_path):
    words = [sys.executable, "-m", "sdpl", "predict", tmp_path / "gone.sdpl", "x.jpg"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export {run}", "is a folder, neither a checkpoint nor a bundle; name the checkpoint in it, "),
        ("export {tmp}", "is a folder, neither a checkpoint nor a bundle; sdpl-train writes model.ckpt."),
        ("export x.ckpt --max-mAP-drop 1", "--max-mAP-drop is about labelled data: name it with --eval."),
        ("export x.ckpt --eval-images {tmp}", "--eval-images is about labelled data: name it with --eval."),
        (
            "export {run}/model.ckpt --target cpu:fp32 --terms 8",
            "--terms 8 is for the separable head: add --head separ",
        ),
        ("train {tmp} --out {tmp}/run", "is a folder; name the configuration file in it."),
        ("train x.yaml --out {tmp}/run --report {tmp}", "is a folder; name a file in it, such as "),
        ("eval x y --report {tmp}", "is a folder; name a file in it, such as "),
        ("eval x y --json {tmp}", "is a folder; name a file in it, such as "),
        ("predict x y --out {tmp}", "is a folder; name a file in it, such as "),
        ("data mask x --proportion 0.5 --out {tmp}", "is a folder; name a file in it, such as "),
        ("bench x --json {tmp}", "is a folder; name a file in it, such as "),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_work(fails, run_folder, tmp_path, words, message):
    assert message in fails(*words.format(run=run_folder, tmp=tmp_path).split())


def test_what_an_export_takes_from_a_bundle_is_said_as_what_will_be(sdpl, checkpoint, bundle, tmp_path):
    out = shutil.copytree(bundle, tmp_path / "m.sdpl")
    result = sdpl("export", checkpoint, "--out", out, "--target", "cpu:int8", "--calibrate", tmp_path / "gone.jpg")
    assert result.exit_code == 2
    assert f"when all is proven, {out} has no cpu:fp32; --keep exports them too" in result.stderr
    assert Bundle.open(out).manifest.targets.keys() == {"cpu:fp32"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.backbone=RN51", "model.backbone = 'RN51' is no open_clip model; did you mean 'RN50'?"),
        ("model.weights={text}", "cannot be loaded as weights (it is no file of tensors)."),
        ("train.device=tpu", "train.device = 'tpu': expected auto, cpu, cuda, or one GPU such as cuda:1."),
        ("train.device=meta", "train.device = 'meta': expected auto, cpu, cuda, or one GPU such as cuda:1."),
    ],
)
def test_what_training_cannot_take_is_named(fails, config, tmp_path, setting, message):
    path = config(model={"backbone_config": None, "backbone": "RN50", "weights": "openai"})
    (tmp_path / "text.pt").write_text("image,dog\na.jpg,1\n")
    words = ("train", path, "--out", tmp_path / "run", "--set", setting.format(text=tmp_path / "text.pt"))
    assert message in fails(*words)


@pytest.mark.parametrize(
    "words",
    [
        "data mask x --out y.csv --proportion",
        "export x --max-score-diff",
        "export x --eval y --max-mAP-drop",
        "eval x y --threshold",
        "predict x y --threshold",
        "bench x --seconds",
        "serve x --max-delay-ms",
        "score x y --out z --price-per-hour",
    ],
)
def test_nan_is_in_no_range(fails, words):
    assert "nan is not a finite number." in fails(*words.split(), "nan")
