"""What runs here and what does not, and the line that a user gets for it."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tensorrt_rtx

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.kernels.gpu import Gpu
from sdpl.runtime import Recognizer
from sdpl.runtime.availability import backend_obstacle, in_order, invalid_engine, logger, target_obstacle

NAME = "rtx:sm86:fp16"
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "86", 24 << 30, "CUDA 13.0")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "89", 24 << 30, "CUDA 13.0")


@pytest.fixture
def opened(gpu_bundle):
    return Bundle.open(gpu_bundle)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(record) puts a GPU, or the reason for none, into this machine."""
    return lambda record: monkeypatch.setattr("sdpl.kernels.gpu.look", lambda device_id: record)


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert backend_obstacle("tensorrt") == f"tensorrt is not installed: {install_line('tensorrt')}"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert backend_obstacle("onnxruntime-cpu") == f"onnxruntime is not installed: {install_line('runtime')}"


def test_no_gpu(gpu):
    gpu("no CUDA GPU was found (no driver)")
    assert backend_obstacle("tensorrt-rtx") == "no CUDA GPU was found (no driver)"
    assert backend_obstacle("onnxruntime-cpu") is None


def test_onnxruntime_without_cuda(gpu):
    gpu(RTX_3090)
    fix = f"pip uninstall onnxruntime, then {install_line('gpu')}"
    assert f"was built without CUDA: {fix}" in backend_obstacle("onnxruntime-cuda")


def test_a_gpu_that_tensorrt_rtx_does_not_build_for(gpu, opened):
    gpu(Gpu("NVIDIA H100", "90", 80 << 30, "CUDA 13.0"))
    assert target_obstacle(opened, NAME) == (
        "no TensorRT-RTX engines are built for compute capability 90 (NVIDIA H100): use tensorrt:fp16 or cuda:fp16"
    )


@pytest.mark.parametrize("bits", [None, 4, 1])
def test_the_engine_itself_is_asked_last(gpu, opened, monkeypatch, bits):
    gpu(RTX_3090)
    answer = ("EngineValidity.VALID", 0) if bits is None else ("EngineValidity.INVALID", bits)
    runtime = SimpleNamespace(get_engine_validity=lambda code: answer)
    monkeypatch.setattr("tensorrt_rtx.Runtime", lambda log: runtime)
    device = SimpleNamespace(current=nullcontext, not_capturing=nullcontext())
    monkeypatch.setattr("sdpl.runtime.availability.context", lambda device_id: device)
    lines = {None: None, 4: "the driver is too old: update the driver"}
    rebuild = f"it was built with another version: sdpl-export {opened.path} --target rtx:sm86:fp16"
    assert target_obstacle(opened, NAME) == lines.get(bits, rebuild)


def test_a_gpu_that_gives_no_context_is_an_obstacle(gpu, opened, monkeypatch):
    """And no error: `auto` then takes a CPU."""

    def context(device_id):
        raise UserError("device 0 cannot be used (another process has it for itself).")

    gpu(RTX_3090)
    monkeypatch.setattr("sdpl.runtime.availability.context", context)
    assert target_obstacle(opened, NAME) == "device 0 cannot be used (another process has it for itself)"


def test_an_engine_for_another_gpu_comes_with_the_command_that_rebuilds_it(gpu, opened):
    gpu(RTX_4090)
    assert target_obstacle(opened, NAME) == (
        "built for compute capability 86, NVIDIA GeForce RTX 4090 has 89: "
        f"sdpl-export {opened.path} --target rtx:sm89:fp16"
    )


def test_an_engine_of_another_version_comes_with_the_command_that_rebuilds_it(gpu, opened):
    gpu(RTX_3090)
    opened.manifest.targets[NAME] = opened.manifest.targets[NAME].model_copy(
        update={"built_with": {"tensorrt_rtx": "1.3.0"}}
    )
    line = target_obstacle(opened, NAME)
    assert line.startswith("built with tensorrt_rtx 1.3.0, here is ")
    assert line.endswith(f"sdpl-export {opened.path} --target rtx:sm86:fp16")


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (1, "it was built with another version: build it again"),
        (4, "the driver is too old: update the driver"),
        (2 | 32, "compute capability: build it again; the file is damaged"),
        (0, "TensorRT-RTX fails (in getCurrentCC (cudaError 35: CUDA driver version is insufficient)): look at nvidia"),
    ],
)
def test_what_tensorrt_rtx_says_of_an_engine_in_words(bits, reason):
    runtime = SimpleNamespace(get_engine_validity=lambda code: ("EngineValidity.INVALID", bits))
    log = logger(tensorrt_rtx)
    log.log(tensorrt_rtx.ILogger.ERROR, "in getCurrentCC (cudaError 35:\nCUDA driver version is insufficient)")
    assert reason in invalid_engine(runtime, b"", log)
    valid = SimpleNamespace(get_engine_validity=lambda code: ("EngineValidity.VALID", 0))
    assert invalid_engine(valid, b"", log) is None
    assert invalid_engine(SimpleNamespace(), b"", log) is None  # TensorRT itself cannot be asked


def test_the_fastest_target_comes_first(gpu_bundle):
    assert in_order(Bundle.open(gpu_bundle).manifest.targets) == [NAME, "cpu:int8", "cpu:fp32"]


def test_auto_takes_the_fastest_usable_and_says_why_not_the_others(gpu_bundle, gpu):
    gpu("no CUDA GPU was found (no driver)")
    with Recognizer.open(gpu_bundle, precision="fp16") as recognizer:
        assert recognizer.target == "cpu:fp32"
        assert recognizer.skipped == {
            NAME: "no CUDA GPU was found (no driver)",
            "cpu:int8": "int8 is less exact than fp16: --precision int8 allows it",
        }


def test_a_target_or_a_backend_may_be_named(gpu_bundle, gpu):
    gpu("no CUDA GPU was found (no driver)")
    for name in ("cpu:fp32", "cpu:int8"):
        with Recognizer.open(gpu_bundle, name) as recognizer:
            assert recognizer.target == name
    with pytest.raises(UserError, match=r"nothing of it runs here. rtx:sm86:fp16: no CUDA GPU was found"):
        Recognizer.open(gpu_bundle, "tensorrt-rtx")
    with pytest.raises(UserError, match=r"has no target for onnxruntime-cuda: sdpl-export makes one"):
        Recognizer.open(gpu_bundle, "onnxruntime-cuda")
