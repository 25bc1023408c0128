"""The engines of the first stage on a machine without a driver: real libraries refuse in one line. What they are told
beyond that: test_engines_on_driver.py."""

import shutil
import sys
from contextlib import contextmanager, nullcontext
from types import FunctionType, SimpleNamespace

import onnxruntime
import pytest

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.runtime.device import OutOfMemoryError
from sdpl.runtime.engines import OnnxRuntimeCuda, TensorRt, _failed

NAME = "rtx:sm86:fp16"
# none of these comes as far as to use one
NO_DEVICE = SimpleNamespace(device_id=0, current=nullcontext, no_captures=nullcontext)


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


def test_what_onnxruntime_says_when_cuda_fails_is_the_reason(bundle_and_target, monkeypatch, capsys):
    """It would fall back to the CPU, and what it prints would be among a command's JSON."""
    bundle, target = bundle_and_target
    before = sys.stdout

    def session(path, options, providers, enable_fallback):
        assert not enable_fallback
        assert sys.stdout is before  # other threads print to it
        raise RuntimeError("/src/cuda_call.cc:129 CUDA failure 35: CUDA driver\nis too old")

    preload = FunctionType((lambda: print("Failed to load libcublas.so")).__code__, vars(onnxruntime))
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    line = r"its CUDA provider \(/src/cuda_call.cc:129 CUDA failure 35: CUDA driver is too old: look at nvidia-smi; a"
    with pytest.raises(UserError, match=line) as raised:
        OnnxRuntimeCuda(bundle, "cuda:fp16", target, NO_DEVICE)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""
    assert "print" not in vars(onnxruntime)


def test_a_session_that_the_gpu_has_no_room_for_says_so(bundle_and_target, monkeypatch):
    def session(*given, **named):
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(OutOfMemoryError, match=r"too little free memory for cuda:fp16: CUDA failure 2: out of memory"):
        OnnxRuntimeCuda(bundle_and_target[0], "cuda:fp16", bundle_and_target[1], NO_DEVICE)


def test_loading_is_kept_apart_from_captures(bundle_and_target, monkeypatch):
    """It may wait for the whole GPU, which would break the capture of another recognizer."""
    inside = []

    @contextmanager
    def no_captures():
        inside.append(True)
        yield
        inside.pop()

    def session(*given, **named):
        assert inside
        raise RuntimeError("it came so far")

    def validity(runtime, code, log):
        assert inside
        return "it came so far"

    device = SimpleNamespace(device_id=0, current=nullcontext, no_captures=no_captures)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr("sdpl.runtime.engines.invalid_engine", validity)
    for engine in (OnnxRuntimeCuda, TensorRt):
        with pytest.raises(UserError, match="it came so far"):
            engine(bundle_and_target[0], NAME, bundle_and_target[1], device)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_onnxruntime_rounds_no_float32_target_to_tf32(bundle_and_target, monkeypatch, precision, tf32):
    """On by default, TF32 moves scores by six times what float32 may."""
    asked = []
    real = onnxruntime.InferenceSession

    def session(path, options, providers, enable_fallback):
        asked.extend(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    bundle, target = bundle_and_target
    device = SimpleNamespace(device_id=3, current=nullcontext, no_captures=nullcontext)
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
        ("the GPU has too little memory: close other programs on it, or build for smaller batches", OutOfMemoryError),
        ("Requested amount of GPU memory (9 bytes) could not be allocated", OutOfMemoryError),
        ("Error Code 1: Unable to allocate 9 bytes", OutOfMemoryError),
        ("std::bad_alloc", OutOfMemoryError),
        ("Cuda Runtime (an illegal memory access was encountered)", RuntimeError),
        ("the allocation strategy is not USER_MANAGED", RuntimeError),
        ("the memory allocator of the context was replaced", RuntimeError),
    ],
)
def test_only_want_of_memory_makes_a_batch_smaller(message, kind):
    assert type(_failed(message, 8)) is kind
