"""The engines of the first stage on a machine without a driver: real libraries refuse in one line. What they are told
beyond that: test_engines_on_driver.py."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import onnxruntime
import pytest

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.runtime.device import OutOfMemoryError
from sdpl.runtime.engines import OnnxRuntimeCuda, TensorRt, _failed

NAME = "rtx:sm86:fp16"
NO_DEVICE = SimpleNamespace(device_id=0, current=nullcontext)  # none of these comes as far as to use one


@pytest.fixture
def bundle_and_target(gpu_bundle, tmp_path):
    bundle = Bundle.open(shutil.copytree(gpu_bundle, tmp_path / "m.sdpl"))
    return bundle, bundle.manifest.targets[NAME]


def test_tensorrt_rtx_without_a_gpu_ends_in_one_line(bundle_and_target):
    with pytest.raises(UserError, match=r"cannot load it \(.*\). Build it again: sdpl-export .*m.sdpl --target rtx"):
        TensorRt(bundle_and_target[0], NAME, bundle_and_target[1], NO_DEVICE)


def test_a_cut_engine_ends_in_one_line(bundle_and_target, monkeypatch):
    bundle, target = bundle_and_target
    path = bundle.path / target.files["engine"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not the file that was exported"):  # its hash already tells
        TensorRt(bundle, NAME, target, NO_DEVICE)


def test_onnxruntime_without_cuda_ends_in_one_line(bundle_and_target):
    bundle, target = bundle_and_target
    line = r"cannot use its CUDA provider \(\S*providers_cuda.so: cannot open shared object file: .*: pip uninstall"
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(UserError, match=line):
        OnnxRuntimeCuda(bundle, "cuda:fp16", target, NO_DEVICE)


def test_what_onnxruntime_prints_when_cuda_fails_is_the_reason(bundle_and_target, monkeypatch, capsys):
    """It falls back to the CPU then, and what it prints would be among a command's JSON."""
    bundle, target = bundle_and_target
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        print("*************** EP Error ***************")
        print(f"EP Error /src/cuda_call.cc:129 CUDA failure 35: CUDA driver\nis too old when using {providers}")
        print("Falling back to ['CPUExecutionProvider'] and retrying.")
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    line = r"its CUDA provider \(/src/cuda_call.cc:129 CUDA failure 35: CUDA driver is too old: look at nvidia-smi; a"
    with pytest.raises(UserError, match=line) as raised:
        OnnxRuntimeCuda(bundle, "cuda:fp16", target, NO_DEVICE)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_onnxruntime_rounds_no_float32_target_to_tf32(bundle_and_target, monkeypatch, precision, tf32):
    """On by default, TF32 moves scores by six times what float32 may."""
    asked = []
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        asked.extend(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    bundle, target = bundle_and_target
    device = SimpleNamespace(device_id=3, current=nullcontext)
    with pytest.raises(UserError):
        OnnxRuntimeCuda(bundle, f"cuda:{precision}", target.model_copy(update={"precision": precision}), device)
    assert asked == [("CUDAExecutionProvider", {"device_id": "3", "use_tf32": tf32})]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", OutOfMemoryError),
        ("1: [defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)", OutOfMemoryError),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", OutOfMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemoryError),
        ("Cuda Runtime (an illegal memory access was encountered)", RuntimeError),
    ],
)
def test_only_want_of_memory_makes_a_batch_smaller(message, kind):
    assert type(_failed(message, 8)) is kind
