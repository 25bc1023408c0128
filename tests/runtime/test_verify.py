"""sdpl-verify and sdpl-info: the proof again on this machine, and what fits it."""

import json
import shutil

import pytest

from sdpl.bundle import PROOF, Bundle
from sdpl.errors import UserError
from sdpl.manifest import CACHE
from sdpl.runtime import Recognizer, backends
from sdpl.runtime.backends import OnnxRuntimeCpu

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(gpu_bundle, tmp_path):
    return shutil.copytree(gpu_bundle, tmp_path / "copy.sdpl")


def test_what_runs_here_is_verified_and_written_down(sdpl, copy):
    before = Bundle.open(copy).manifest
    result = sdpl("verify", copy)
    assert result.exit_code == 0, result.output
    assert "cpu:fp32: 6 images: scores differ by at most" in result.stdout
    assert "rtx:sm86:fp16: not run: no CUDA GPU was found" in result.stdout
    after = Bundle.open(copy).manifest
    record = after.targets["cpu:int8"].verification
    assert record.environment["provider"] == "CPUExecutionProvider"
    assert record.scored_by == "target"
    assert after.targets["rtx:sm86:fp16"] == before.targets["rtx:sm86:fp16"]
    assert after.targets["rtx:sm86:fp16"].status == "built, not run"
    assert after.files == before.files


def test_wrong_scores_fail_with_the_numbers_and_change_nothing(fails, copy, monkeypatch):
    right = OnnxRuntimeCpu.infer
    monkeypatch.setattr(OnnxRuntimeCpu, "infer", lambda *given: [output + 0.5 for output in right(*given)])
    before = (copy / "manifest.json").read_bytes()
    line = fails("verify", copy)
    assert "cpu:fp32 does not give PyTorch's answers on this machine: scores differ by up to" in line
    assert (copy / "manifest.json").read_bytes() == before


def test_scores_that_are_wrong_only_by_themselves_fail_too(fails, copy, monkeypatch):
    """They are what serves; the proof of a CPU takes nearly all of its scores from the call for embeddings."""
    right = OnnxRuntimeCpu.scores
    monkeypatch.setattr(OnnxRuntimeCpu, "scores", lambda *given: right(*given) + 0.5)
    assert "cpu:fp32 does not give PyTorch's answers on this machine: scores differ by up to 5.00e-01" in fails(
        "verify", copy
    )


def test_times_that_cannot_be_written_leave_the_result_recorded(sdpl, copy):
    (copy / CACHE).write_text("a file where the folder would be")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["targets"]["cpu:fp32"]["verification"]["mean_score_difference"] = 0.5  # another machine's
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = sdpl("verify", copy, "--target", "cpu:fp32")
    assert result.exit_code == 0
    assert "warning: the result was recorded, the times were not: " in result.stderr
    assert Bundle.open(copy).manifest.targets["cpu:fp32"].verification.mean_score_difference < 0.1


def test_a_damaged_proof_ends_it_at_once(sdpl, copy):
    (copy / PROOF).write_bytes(b"other")
    result = sdpl("verify", copy)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {copy / PROOF}: is " in result.stderr


def test_the_limit_of_map_is_the_export_s(sdpl, checkpoint, scenes, tmp_path):
    """A loss of mAP that the export was allowed is not judged again, without the data, by the default limit."""
    out, labels = tmp_path / "m.sdpl", scenes / "annotations" / "instances_test.json"
    words = ["--target", "cpu:fp32", "--eval", labels]
    assert sdpl("export", checkpoint, "--out", out, *words).exit_code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["targets"]["cpu:fp32"]["verification"]["accuracy"]["target"]["mAP"] = 0.0
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert sdpl("verify", out).exit_code == 0


def test_a_bundle_replaced_meanwhile_is_left_alone(copy):
    bundle = Bundle.open(copy)
    changed = json.loads((copy / "manifest.json").read_text()) | {"created": "later"}
    (copy / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="was replaced by another command meanwhile; its manifest is left alone"):
        bundle.replace_targets({})
    assert json.loads((copy / "manifest.json").read_text())["created"] == "later"


def test_a_target_that_fails_only_when_it_is_opened_is_skipped(copy, sdpl, monkeypatch):
    """`auto` takes the next one; the proof of the others goes on, and its end is a failure."""
    right = backends._open

    def fails_late(bundle, name, cores, device):
        if name == "cpu:int8":
            raise UserError("the driver is too old: update the driver")
        return right(bundle, name, cores, device)

    monkeypatch.setattr(backends, "_open", fails_late)
    with Recognizer.open(copy, "auto:int8") as recognizer:
        assert recognizer.target == "cpu:fp32"
        assert recognizer.skipped["cpu:int8"] == "the driver is too old: update the driver"
    result = sdpl("verify", copy)
    assert result.exit_code == 2
    assert "cpu:int8 failed: the driver is too old" in result.stderr
    assert "cpu:fp32: 6 images" in result.stdout


def test_nothing_to_verify_is_said(fails, checkpoint, sdpl, tmp_path):
    assert sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl", "--target", "rtx:sm86:fp16").exit_code == 0
    assert "nothing was verified: no target of the bundle runs here" in fails("verify", tmp_path / "m.sdpl")


def test_info_about_the_machine(sdpl):
    result = sdpl("info")
    assert result.exit_code == 0
    assert "onnxruntime-cpu" in result.stdout
    assert "usable" in result.stdout
    found = json.loads(sdpl("info", "--json").stdout)
    assert found["environment"]["backends"]["onnxruntime-cpu"] == "usable"
    assert "onnxruntime" in found["environment"]["packages"]
    assert found["targets"] == {}


def test_info_about_a_bundle(sdpl, gpu_bundle):
    result = sdpl("info", gpu_bundle)
    assert "built, not run" in result.stdout
    targets = json.loads(sdpl("info", gpu_bundle, "--json").stdout)["targets"]
    assert targets["cpu:fp32"] == {"status": "verified", "head": "in the graph", "here": "usable"}
    assert (targets["rtx:sm86:fp16"]["status"], targets["rtx:sm86:fp16"]["head"]) == ("built, not run", "kernel")


def test_info_about_no_bundle(fails, tmp_path):
    assert "no such bundle" in fails("info", tmp_path / "gone.sdpl")


@pytest.mark.parametrize("harm", ["missing", "changed"])
@pytest.mark.parametrize("target", ["cpu:int8", "rtx:sm86:fp16"])
def test_a_damaged_target_is_a_failure_wherever_it_runs(sdpl, copy, harm, target):
    bundle = Bundle.open(copy)
    own = next(f for f in bundle.manifest.targets[target].files.values() if "int8" in f or f.endswith(".engine"))
    (copy / own).unlink() if harm == "missing" else (copy / own).write_bytes(b"other")
    result = sdpl("verify", copy)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: {copy}: {target} failed: {copy / own}: is ")
    assert "cpu:fp32: 6 images: scores differ by at most" in result.stdout  # the others are still tried
    assert sdpl("verify", copy, "--target", "cpu:fp32").exit_code == 0  # --target narrows


def test_a_target_that_crashes_is_a_failure(fails, copy, monkeypatch):
    def crash(self, outputs, images):
        raise RuntimeError("illegal instruction\nmore")

    monkeypatch.setattr(OnnxRuntimeCpu, "infer", crash)
    assert "cpu:fp32 crashed: RuntimeError: illegal instruction; " in fails("verify", copy)


def test_a_target_that_is_not_there_is_named(fails, copy):
    assert "has no target 'cpu:fp23'; did you mean 'cpu:fp32'?" in fails("verify", copy, "--target", "cpu:fp23")
