"""The engines of the first stage, as far as a machine without a GPU goes: real libraries refuse in one line, and calls
into TensorRT's API, recorded, are those that its documentation asks for."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from host_gpu import HostDevice

from sdpl.bundle import CACHE, Bundle, is_bundle
from sdpl.errors import UserError
from sdpl.runtime.device import OutOfMemoryError
from sdpl.runtime.engines import OnnxRuntimeCuda, TensorRt

NAME = "rtx:sm86:fp16"


@pytest.fixture
def bundle_and_target(gpu_bundle, tmp_path):
    bundle = Bundle.open(shutil.copytree(gpu_bundle, tmp_path / "m.sdpl"))
    return bundle, bundle.manifest.targets[NAME]


def test_tensorrt_rtx_without_a_gpu_ends_in_one_line(bundle_and_target):
    with pytest.raises(UserError, match=r"cannot load it \(.*\). Build it again: sdpl-export .*m.sdpl --target rtx"):
        TensorRt(bundle_and_target[0], NAME, bundle_and_target[1], HostDevice())


def test_a_cut_engine_ends_in_one_line(bundle_and_target, monkeypatch):
    bundle, target = bundle_and_target
    path = bundle.path / target.files["engine"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not the file that was exported"):  # its hash already tells
        TensorRt(bundle, NAME, target, HostDevice())


def test_onnxruntime_without_cuda_ends_in_one_line(bundle_and_target):
    bundle, target = bundle_and_target
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(UserError, match="CUDA provider: pip"):
        OnnxRuntimeCuda(bundle, "cuda:fp16", target, HostDevice())


class RecordedContext:
    def __init__(self, config):
        self.config, self.addresses, self.shape, self.memory, self.runs = config, {}, None, None, []

    def set_device_memory(self, pointer, size):
        self.memory = (pointer, size)

    def set_input_shape(self, name, shape):
        self.shape = (name, shape)
        return shape[0] <= 64

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        self.runs.append((stream, dict(self.addresses)))
        return True

    def is_stream_capturable(self, stream):
        return stream == 7


@pytest.fixture
def recorded(monkeypatch):
    """TensorRT-RTX's Python API with an engine that only records; `recorded.contexts` are those it made."""
    contexts = []
    cache = SimpleNamespace(
        loaded=[], deserialize=lambda blob: cache.loaded.append(blob), serialize=lambda: b"compiled"
    )
    config = SimpleNamespace(
        set_execution_context_allocation_strategy=lambda strategy: None,
        dynamic_shapes_kernel_specialization_strategy="lazy",
        create_runtime_cache=lambda: cache,
        set_runtime_cache=lambda cache: None,
    )

    def create_execution_context(config):
        contexts.append(RecordedContext(config))
        return contexts[-1]

    engine = SimpleNamespace(
        get_tensor_shape=lambda name: (-1, 64, 64, 3),
        device_memory_size_v2=4096,
        create_runtime_config=lambda: config,
        create_execution_context=create_execution_context,
    )
    runtime = SimpleNamespace(
        get_engine_validity=lambda code: ("EngineValidity.VALID", 0), deserialize_cuda_engine=lambda code: engine
    )
    module = SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.7",
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        Runtime=lambda log: runtime,
        IRuntimeCache=object,
        IExecutionContext=RecordedContext,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        config=config,
        contexts=contexts,
        cache=cache,
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


def test_one_context_per_batch_size_and_one_workspace_for_all(recorded, bundle_and_target):
    device = HostDevice()
    encoder = TensorRt(*bundle_and_target[:1], NAME, bundle_and_target[1], device)
    assert recorded.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    for batch in (1, 8):
        encoder.prepare(batch)
    for batch in (1, 8, 1, 5, 6):
        encoder.enqueue(batch, 100, 200, 300, stream=7)
    one, eight, of_any_batch = recorded.contexts
    assert (of_any_batch.shape[1][0], len(of_any_batch.runs)) == (6, 2)
    assert (one.shape, eight.shape) == (("image", (1, 64, 64, 3)), ("image", (8, 64, 64, 3)))
    assert one.memory == eight.memory
    assert one.memory[1] == device.used == 4096
    assert one.runs == [(7, {"image": 100, "u": 200, "g": 300})] * 2
    assert encoder.capturable(7)
    assert not encoder.capturable(8)
    with pytest.raises(UserError, match="batch 65 is outside of the engine's profile"):
        encoder.prepare(65)
    assert encoder.describe() == {"library": "tensorrt_rtx 1.7"}
    one.execute_async_v3 = lambda stream: False
    encoder._log.first_error = "Cuda Runtime (out of memory)"
    with pytest.raises(OutOfMemoryError, match="too little free memory for batch 1"):
        encoder.enqueue(1, 100, 200, 300, stream=7)
    encoder.close()
    encoder.close()
    assert device.used == 0


def test_what_was_compiled_is_kept_in_the_bundle_s_cache(recorded, bundle_and_target):
    bundle, target = bundle_and_target
    TensorRt(bundle, NAME, target, HostDevice()).close()
    (kept,) = (bundle.path / CACHE).iterdir()
    assert kept.read_bytes() == b"compiled"
    assert recorded.cache.loaded == []
    TensorRt(bundle, NAME, target, HostDevice()).close()
    assert recorded.cache.loaded == [b"compiled"]
    assert is_bundle(bundle.path)  # an export may still replace it
    assert np.isfinite(bundle.proof()[1]).all()


def test_a_bundle_that_cannot_be_written_to_works_too(recorded, bundle_and_target, monkeypatch):
    bundle, target = bundle_and_target
    (bundle.path / CACHE).write_text("a file where the folder would be")
    TensorRt(bundle, NAME, target, HostDevice()).close()
