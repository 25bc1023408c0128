"""The two stages of a GPU backend, with only the driver replaced: scores are PyTorch's, and nothing leaks."""

import threading

import numpy as np
import pytest
from emulation import build
from host_gpu import HostDevice, HostEncoder, HostKernels, at

from sdpl.bundle import Bundle, Profile
from sdpl.errors import UserError
from sdpl.runtime.backends import Choice
from sdpl.runtime.device import OutOfMemoryError
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.two_stage import TwoStage, batch_sizes

pytestmark = pytest.mark.slow

TARGET = "rtx:sm86:fp16"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulator"), "float16")


@pytest.fixture
def make(gpu_bundle, program):
    """make(limit=bytes, captured=..., profile=...) -> a recognizer on a host device."""
    opened = []

    def build_one(limit=1 << 40, captured=True, profile=None):
        bundle = Bundle.open(gpu_bundle)
        target = bundle.manifest.targets[TARGET]
        if profile:
            target = target.model_copy(update={"profile": profile})
        encoder = HostEncoder(bundle.file(target.files["encoder"]), captured)
        device = HostDevice(limit)
        backend = TwoStage("host", bundle, target, encoder, HostKernels("float16", program), device)
        opened.append(Recognizer(bundle, Choice(TARGET, backend, {})))
        return opened[-1], device, encoder

    yield build_one
    for recognizer in opened:
        recognizer.close()


@pytest.fixture
def proof(gpu_bundle):
    return Bundle.open(gpu_bundle).proof()


@pytest.mark.parametrize("captured", [True, False])
def test_scores_are_pytorch_s_first_and_replayed(make, proof, captured):
    recognizer, device, _ = make(captured=captured)
    images, expected = proof
    for _ in range(3):
        np.testing.assert_allclose(recognizer.scores(images), expected, atol=5e-3)
    assert device.calls["replay"] == (2 if captured else 0)
    assert device.calls["capture"] == (1 if captured else 0)


def test_attention_is_the_portable_model_s(make, proof, gpu_bundle):
    images, _ = proof
    with Recognizer.open(gpu_bundle, "cpu:fp32") as portable:
        scores, attention = portable.attention(images)
    for _ in range(2):
        ours = make()[0].attention(images)
        np.testing.assert_allclose(ours[0], scores, atol=5e-3)
        np.testing.assert_allclose(ours[1], attention, atol=5e-3)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_any_batch_fits_a_bucket_and_padding_is_not_seen(make, proof, batch):
    recognizer, _, encoder = make(profile=Profile(min=1, opt=2, max=4))
    images, expected = proof
    np.testing.assert_allclose(recognizer.scores(images[:batch]), expected[:batch], atol=5e-3)
    assert set(encoder.batches) <= {1, 2, 4}


@pytest.mark.parametrize(
    ("profile", "sizes"), [((1, 8, 64), [1, 2, 4, 8, 16, 32, 64]), ((1, 1, 1), [1]), ((3, 4, 12), [3, 4, 8, 12])]
)
def test_buckets_are_powers_of_two_inside_the_profile(profile, sizes):
    assert batch_sizes(Profile(**dict(zip(("min", "opt", "max"), profile, strict=True)))) == sizes


class OnDevice:
    """Images on the device as PyTorch, CuPy or PyCUDA describe theirs."""

    def __init__(self, device, images, **changes):
        self.pointer = device.allocate(images.nbytes)
        at(self.pointer, images.shape)[:] = images
        self.shape, self.dtype = images.shape, images.dtype
        self.__cuda_array_interface__ = {
            "shape": images.shape, "typestr": "|u1", "strides": None, "data": (self.pointer, False), "version": 3,
        } | changes  # fmt: skip


@pytest.mark.parametrize("least", [1, 4])
def test_images_on_the_device_are_read_where_they_lie(make, proof, least):
    recognizer, device, _ = make(profile=Profile(min=least, opt=4, max=4))
    images, expected = proof
    recognizer.scores(images)
    before = device.calls["copy"]
    np.testing.assert_allclose(recognizer.scores(OnDevice(device, images, stream=5)), expected, atol=5e-3)
    copies_of_results = 2  # six images: a bucket of 4, then 2
    assert device.calls["copy"] - before == copies_of_results + (1 if least == 4 else 0)


def test_wrong_arrays_on_the_device_are_named(make, proof):
    recognizer, device, _ = make()
    with pytest.raises(ValueError, match="expected contiguous images on the GPU"):
        recognizer.scores(OnDevice(device, proof[0], strides=(1, 2, 3, 4)))
    with pytest.raises(ValueError, match=r"expected images uint8 \[B,64,64,3\], got float32"):
        recognizer.scores(OnDevice(device, proof[0], typestr="<f4"))


def test_a_full_gpu_takes_smaller_batches_and_then_says_so(make, proof):
    recognizer, device, encoder = make(profile=Profile(min=1, opt=4, max=4))
    recognizer.scores(proof[0][:1])
    device.limit = device.used + 30_000  # room for two images, not for four
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=5e-3)
    assert max(encoder.batches) == 2

    crowded, device, _ = make()
    device.limit = device.used
    with pytest.raises(UserError, match="too little free memory"):
        crowded.scores(proof[0])
    assert device.used == device.limit
    device.limit = 1 << 40
    np.testing.assert_allclose(crowded.scores(proof[0]), proof[1], atol=5e-3)


@pytest.mark.parametrize("limit", ["most", "most_running"])
@pytest.mark.parametrize("on_device", [False, True])
def test_an_engine_that_runs_out_of_memory_gets_smaller_batches(make, proof, limit, on_device):
    recognizer, device, encoder = make(profile=Profile(min=1, opt=4, max=4))
    setattr(encoder, limit, 2)
    images = OnDevice(device, proof[0]) if on_device else proof[0]
    np.testing.assert_allclose(recognizer.scores(images), proof[1], atol=5e-3)
    assert max(encoder.batches) == 2
    assert set(encoder.forgotten) == {4}


def test_a_capture_that_fails_costs_only_the_graph(make, proof):
    recognizer, device, _ = make()
    device.refuses_capture = True
    for _ in range(3):
        np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=5e-3)
    assert device.calls["capture"] == 1
    assert device.calls["replay"] == 0
    assert recognizer.backend.describe()["cuda_graphs"] == "False"


def test_attention_takes_memory_only_when_it_is_asked_for(make, proof):
    recognizer, device, _ = make(profile=Profile(min=8, opt=8, max=8))
    recognizer.scores(proof[0])
    before = device.used
    recognizer.attention(proof[0])
    assert device.used - before == 8 * 10 * 4 * 4  # [B,C,L] floats


def test_arrays_that_do_not_name_their_stream_are_waited_for(make, proof):
    recognizer, device, _ = make()
    recognizer.scores(OnDevice(device, proof[0], version=2))  # as PyTorch's
    assert device.calls["synchronize_all"] == 1
    recognizer.scores(OnDevice(device, proof[0], stream=5))
    assert device.calls["synchronize_all"] == 1


def test_a_head_that_does_not_fit_leaves_nothing_behind(make):
    with pytest.raises(UserError, match="too little free memory"):
        make(limit=300)
    device = HostDevice.made[-1]
    assert (device.memory, device.streams) == ({}, set())


def test_a_batch_over_the_profile_is_not_measured_as_one(make, proof):
    recognizer, _, _ = make(profile=Profile(min=1, opt=2, max=4))
    with pytest.raises(UserError, match="a batch of 6 does not go through the engine at once"):
        recognizer.backend.on_device(proof[0])


def test_an_error_of_the_engine_leaves_it_usable(make, proof):
    recognizer, _, encoder = make()
    right = encoder.enqueue

    def fail(*arguments):
        raise RuntimeError("the engine failed")

    encoder.enqueue = fail
    with pytest.raises(RuntimeError, match="the engine failed"):
        recognizer.scores(proof[0])
    encoder.enqueue = right
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=5e-3)


def test_many_batches_allocate_nothing_new_and_closing_frees_everything(make, proof):
    recognizer, device, encoder = make()
    recognizer.scores(proof[0])
    recognizer.attention(proof[0])
    before = (device.used, len(device.pinned), len(device.graphs))
    for _ in range(3):
        recognizer.scores(proof[0])
        recognizer.attention(proof[0])
    assert (device.used, len(device.pinned), len(device.graphs)) == before
    recognizer.close()
    recognizer.close()
    assert (device.memory, device.pinned, device.graphs, device.streams) == ({}, {}, {}, set())
    assert encoder.closed
    with pytest.raises(RuntimeError, match="closed"):
        recognizer.scores(proof[0])


def test_threads_get_their_own_scores(make, proof):
    recognizer, _, _ = make()
    images, expected = proof
    results = {}

    def work(i):
        results[i] = recognizer.scores(images[i : i + 1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, scores in results.items():
        np.testing.assert_allclose(scores[0], expected[i], atol=5e-3)


def test_a_call_without_transfers_can_be_measured(make, proof):
    recognizer, device, _ = make()
    call = recognizer.backend.on_device(proof[0])
    before = device.calls["copy"]
    call()
    assert device.calls["copy"] == before
    assert issubclass(OutOfMemoryError, UserError)
