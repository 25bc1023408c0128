import dataclasses
import sys

import pytest

from sdpl.errors import UserError
from sdpl.targets import BACKENDS, TARGETS, TargetSpec, default_targets, parse_targets


def test_names_and_specs_are_one_to_one():
    assert parse_targets(tuple(TARGETS)) == tuple(TARGETS.values())
    assert all(str(spec) == name for name, spec in TARGETS.items())
    assert parse_targets(("rtx:sm86:fp16", "cpu:int8", "rtx:sm86:fp16")) == (
        TargetSpec("rtx", "fp16", "86"),
        TargetSpec("cpu", "int8"),
    )


def test_only_openvino_is_loaded_without_its_telemetry(tmp_path, monkeypatch):
    """Each load takes it away and puts it back: beside OpenVINO's, another one's would put it back too early."""
    (tmp_path / "some_engine.py").write_text("import sys\nHIDDEN = sys.modules.get('openvino_telemetry', 0) is None\n")
    monkeypatch.syspath_prepend(tmp_path)
    backend = dataclasses.replace(BACKENDS["onnxruntime-cpu"], package="some_engine")
    assert not backend.load().HIDDEN
    del sys.modules["some_engine"]


def test_no_name_means_the_defaults():
    assert parse_targets(()) == default_targets()
    assert str(default_targets()[0]) == "cpu:fp32"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cuda:fp61", "cuda:fp16"), ("rtx:sm86:fp61", "rtx:sm86:fp16"), ("tensort:fp16", "tensorrt:fp16")],
)
def test_a_misspelt_target_gets_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"--target '{name}': did you mean '{hint}'"):
        parse_targets((name,))


def test_nothing_near_lists_all():
    with pytest.raises(UserError, match=r"cpu:fp32.*and \d+ more .a target is a kind, .* such as rtx:sm86:fp16"):
        parse_targets(("banana",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "rtx:sm90:fp16",
            "for compute capability 90, and those of another do not run there: take tensorrt:fp16, built",
        ),
        ("rtx:h100", "compute capability 90, .* or cuda:fp16"),
        ("rtx:sm90:int8", "take tensorrt:int8, built on that GPU, or cuda:fp16"),
        ("rtx:sm75:int8", "compute capability 75 is too old for sdpl's kernels, which need 80: take cpu:fp32 there"),
        ("rtx:3090", "this GPU is rtx:sm86:fp16"),
        ("rtx3090", "this GPU is rtx:sm86:fp16"),
        ("NVIDIA GeForce RTX 4090", "this GPU is rtx:sm89:fp16"),
        ("h100", "compute capability 90, .* or cuda:fp16"),
        ("t4", "compute capability 75 is too old for sdpl's kernels, which need 80: take cpu:fp32 there"),
        ("rtx", "for RTX 30 take rtx:sm86:fp16"),
        ("gpu", "for others cuda:fp16"),
        ("cuda", "did you mean 'cuda:fp16'"),
        ("onnxruntime-cuda", "did you mean 'cuda:fp16'"),
        ("trt", "did you mean 'tensorrt:fp16'"),
        ("tensorrt", "did you mean 'tensorrt:fp16'"),
        ("rtx:RTX-4090:int8", "this GPU is rtx:sm89:int8"),
        ("rtx:sm86", "did you mean 'rtx:sm86:"),
    ],
)
def test_for_a_gpu_without_a_target_the_one_that_fits_is_named(name, said):
    with pytest.raises(UserError, match=said):
        parse_targets((name,))
