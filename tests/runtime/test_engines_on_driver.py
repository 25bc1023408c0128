"""What TensorRT is told, by a recording of its API; memory is that of the driver of host memory."""

import shutil
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from host_driver import get

from sdpl.bundle import Bundle, may_replace
from sdpl.errors import UserError
from sdpl.manifest import CACHE
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.engines import TensorRt

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

NAME = "rtx:sm86:fp16"
STREAM = 7


@pytest.fixture
def bundle_and_target(gpu_bundle, tmp_path):
    bundle = Bundle.open(shutil.copytree(gpu_bundle, tmp_path / "m.sdpl"))
    return bundle, bundle.manifest.targets[NAME]


@pytest.fixture
def device():
    """A GPU that is the test's, with nothing left on it afterwards."""
    cuda, before = Cuda(), get("used")
    with cuda.current():
        yield cuda
    assert get("used") == before


class Recording:
    """TensorRT-RTX's Python API with an engine that only records. Objects are held by who asked for them, as there."""

    __name__, __version__ = "tensorrt_rtx", "1.7"
    ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})
    IRuntimeCache = object
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self):  # noqa: C901, small classes that refer to it
        self.log, self.complains = None, None
        self.contexts, self.destroyed, self.loaded, self.strategies = [], [], [], []
        recording = self

        class Part:
            def __del__(self):
                recording.destroyed.append(type(self).__name__)

        class Cache(Part):
            def deserialize(self, blob):
                recording.loaded.append(blob)

            def serialize(self):
                return b"compiled"

        class Config(Part):
            def __setattr__(self, name, value):
                recording.strategies.append((name, value))

            def set_execution_context_allocation_strategy(self, strategy):
                pass

            def create_runtime_cache(self):
                return Cache()

            def set_runtime_cache(self, cache):
                pass

        class Context(Part):
            def __init__(self):
                self.record = SimpleNamespace(addresses={}, shape=None, memory=None, runs=[], works=True)
                recording.contexts.append(self.record)

            def set_device_memory(self, pointer, size):
                self.record.memory = (pointer, size)

            def set_input_shape(self, name, shape):
                self.record.shape = (name, shape)
                return shape[0] <= 64

            def set_tensor_address(self, name, pointer):
                self.record.addresses[name] = pointer
                return pointer % 256 == 0

            def execute_async_v3(self, stream):
                self.record.runs.append((stream, dict(self.record.addresses)))
                if recording.complains:
                    recording.log.log(recording.ILogger.ERROR, recording.complains)
                return self.record.works

            def is_stream_capturable(self, stream):
                return stream == STREAM

        class Engine(Part):
            device_memory_size_v2 = 4096

            def get_tensor_shape(self, name):
                return (-1, 64, 64, 3)

            def create_runtime_config(self):
                return Config()

            def create_execution_context(self, config):
                return Context()

        class Runtime(Part):
            def __init__(self, log):
                recording.log = log

            def get_engine_validity(self, code):
                return ("EngineValidity.VALID", 0)

            def deserialize_cuda_engine(self, code):
                return Engine()

        self.Runtime, self.IExecutionContext = Runtime, Context


@pytest.fixture
def recorded(monkeypatch):
    module = Recording()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


@pytest.fixture
def encoder(recorded, bundle_and_target, device):
    made = TensorRt(bundle_and_target[0], NAME, bundle_and_target[1], device)
    yield made
    made.close()


def test_one_context_per_batch_size_and_one_workspace_for_all_of_a_stream(recorded, encoder):
    assert ("dynamic_shapes_kernel_specialization_strategy", "eager") in recorded.strategies
    before = get("used")
    for batch in (1, 8):
        encoder.prepare(batch, STREAM)
    for batch in (1, 8, 1):
        encoder.enqueue(batch, 256, (512, 768), STREAM)
    one, eight = recorded.contexts
    assert (one.shape, eight.shape) == (("image", (1, 64, 64, 3)), ("image", (8, 64, 64, 3)))
    assert one.memory == eight.memory
    assert one.memory[1] == get("used") - before == 4096
    assert one.runs == [(STREAM, {"image": 256, "u": 512, "g": 768})] * 2
    assert encoder.capturable(STREAM)
    with pytest.raises(UserError, match="batch 65 is outside of the engine's profile"):
        encoder.prepare(65, STREAM)
    assert encoder.describe() == {"library": "tensorrt_rtx 1.7"}


def test_an_engine_of_the_whole_model_writes_all_of_its_outputs(recorded, bundle_and_target, device):
    bundle, target = bundle_and_target
    whole = target.model_copy(update={"files": {"model": "model.onnx", "engine": target.files["engine"]}})
    engine = TensorRt(bundle, NAME, whole, device)
    engine.prepare(1, STREAM)
    engine.enqueue(1, 256, (512, 768, 1024), STREAM)
    given = {"image": 256, "scores": 512, "attention": 768, "embedding": 1024}
    assert recorded.contexts[0].runs == [(STREAM, given)]
    engine.close()


def test_an_engine_of_an_older_bundle_writes_no_embedding(recorded, bundle_and_target, device):
    bundle, target = bundle_and_target
    older = Bundle(bundle.path, bundle.manifest.model_copy(update={"embedding_size": None}))
    whole = target.model_copy(update={"files": {"model": "model.onnx", "engine": target.files["engine"]}})
    engine = TensorRt(older, NAME, whole, device)
    engine.prepare(1, STREAM)
    engine.enqueue(1, 256, (512, 768), STREAM)
    assert recorded.contexts[0].runs == [(STREAM, {"image": 256, "scores": 512, "attention": 768})]
    engine.close()


def test_an_engine_that_the_gpu_has_no_room_for_is_not_to_be_built_again(recorded, bundle_and_target, device):
    def fails(code):
        recorded.log.log(recorded.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 92 bytes.)")

    recorded.Runtime.deserialize_cuda_engine = staticmethod(fails)
    with pytest.raises(OutOfMemoryError, match=r"too little free memory for the engine of rtx:sm86:fp16: .*92 by"):
        TensorRt(bundle_and_target[0], NAME, bundle_and_target[1], device)


def test_streams_share_neither_contexts_nor_workspace(recorded, encoder):
    before = get("used")
    for stream in (STREAM, 8):
        encoder.prepare(1, stream)
        encoder.enqueue(1, 256, (512, 768), stream)
    one, other = recorded.contexts
    assert one.memory[0] != other.memory[0]
    assert (one.runs[0][0], other.runs[0][0]) == (STREAM, 8)
    assert not encoder.capturable(8)
    encoder.leave(8)
    assert get("used") - before == 4096


def test_what_the_engine_refuses_is_an_error(recorded, encoder):
    encoder.prepare(1, STREAM)
    with pytest.raises(RuntimeError, match="the engine does not take address 0x64 for image"):
        encoder.enqueue(1, 100, (256, 512), STREAM)
    assert not recorded.contexts[0].runs
    recorded.contexts[0].works = False
    recorded.complains = "Cuda Runtime\n(out of memory)"
    with pytest.raises(OutOfMemoryError, match=r"too little free memory for batch 1: Cuda Runtime \(out of memory\)"):
        encoder.enqueue(1, 256, (512, 768), STREAM)


def test_an_error_has_its_own_reason_and_not_one_of_before(recorded, encoder):
    """Else whatever fails after one lack of memory would be taken for another."""
    encoder.prepare(1, STREAM)
    recorded.contexts[0].works = False
    recorded.complains = "out of memory"
    with pytest.raises(OutOfMemoryError):
        encoder.enqueue(1, 256, (512, 768), STREAM)
    recorded.complains = "an illegal instruction"
    with pytest.raises(RuntimeError, match=r"the engine failed \(an illegal instruction\)"):
        encoder.enqueue(1, 256, (512, 768), STREAM)


def test_batches_of_two_threads_fail_each_for_its_own_reason(recorded, encoder):
    reasons = {}

    def work(reason):
        encoder._log.log(recorded.ILogger.ERROR, reason)
        both.wait(timeout=30)
        reasons[reason] = encoder._log.first_error()

    both = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(reason,)) for reason in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == {"one": "one", "two": "two"}


def test_what_another_thread_was_told_is_no_reason(recorded, encoder):
    """Its lack of memory, long ago, would make this failure one too, and every bucket would be given up."""
    encoder.prepare(1, STREAM)
    other = threading.Thread(target=lambda: encoder._log.log(recorded.ILogger.ERROR, "out of memory"))
    other.start()
    other.join()
    recorded.contexts[0].works = False
    with pytest.raises(RuntimeError, match=r"the engine failed \(no reason given\)"):
        encoder.enqueue(1, 256, (512, 768), STREAM)


def test_a_loading_that_fails_in_a_thread_of_the_library_has_its_reason(recorded, bundle_and_target, device):
    def fails(code):
        own = threading.Thread(target=lambda: recorded.log.log(recorded.ILogger.ERROR, "cannot map a section"))
        own.start()
        own.join()

    recorded.Runtime.deserialize_cuda_engine = staticmethod(fails)
    with pytest.raises(UserError, match=r"cannot load it \(cannot map a section\)"):
        TensorRt(bundle_and_target[0], NAME, bundle_and_target[1], device)


def test_nothing_is_destroyed_before_what_was_made_of_it(recorded, encoder):
    for batch in (1, 3):
        encoder.prepare(batch, STREAM)
        encoder.enqueue(batch, 256, (512, 768), STREAM)
    encoder.close()
    encoder.close()
    assert recorded.destroyed == ["Context", "Context", "Config", "Cache", "Engine", "Runtime"]


def test_what_was_compiled_is_kept_as_soon_as_a_batch_size_has_run(recorded, encoder, bundle_and_target, device):
    bundle, target = bundle_and_target
    encoder.warmed()
    (kept,) = (bundle.path / CACHE).iterdir()  # while it is still open: a server may be killed
    assert kept.read_bytes() == b"compiled"
    assert recorded.loaded == []
    TensorRt(bundle, NAME, target, device).close()
    assert recorded.loaded == [b"compiled"]
    assert may_replace(bundle.path)  # an export may still replace it
    assert np.isfinite(bundle.proof()[1].scores).all()


def test_a_bundle_that_cannot_be_written_to_works_too(recorded, encoder, bundle_and_target):
    (bundle_and_target[0].path / CACHE).write_text("a file where the folder would be")
    encoder.warmed()
