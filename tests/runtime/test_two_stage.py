"""The two stages of a GPU backend on the driver of host memory: scores are PyTorch's, and nothing leaks."""

import contextlib
import ctypes
import os
import threading
import time

import numpy as np
import onnxruntime
import pytest
from host_driver import get, put
from host_encoder import HostEncoder
from safetensors.numpy import load_file

from sdpl.bundle import Bundle, to_scores
from sdpl.errors import UserError
from sdpl.kernels.driver import DriverError, call
from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import bilinear_attention_pool, mean_embedding
from sdpl.manifest import Profile
from sdpl.runtime.backends import Choice
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.gpu_resize import GpuResize
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.two_stage import CAPTURES, TwoStage, batch_sizes

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

TARGET = "rtx:sm86:fp16"
EXACT = 2e-5  # of scores: sums in float32; images differ by ten times that
MEMORY = 1 << 30  # of each GPU
HELD = ("used", "pinned", "streams", "graphs", "modules")  # what a recognizer takes of a driver


def held():
    return {name: get(name) for name in HELD}


@pytest.fixture
def make(gpu_bundle):
    """make(captured=..., profile=..., device=..., resizes=...) -> a recognizer, its device and its encoder. Nothing of
    them is left on the driver afterwards."""
    opened, before = [], held()

    def build_one(captured=True, profile=None, device=0, resizes=True):
        bundle = Bundle.open(gpu_bundle)
        target = bundle.manifest.targets[TARGET]
        if profile:
            target = target.model_copy(update={"profile": profile})
        encoder = HostEncoder(bundle.file(target.files["encoder"]), captured)
        cubin = bundle.file(target.files["cubin.sm86"]).read_bytes()
        kernels = Kernels("float16", cubin, device)
        cuda = Cuda(device)
        opened.append(kernels)
        resize = None
        if resizes:
            resize = GpuResize(64, cuda, bundle.file(target.files["resize.sm86"]).read_bytes())
            opened.append(resize)
        backend = TwoStage("host", bundle, target, encoder, kernels, cuda, resize)
        opened[-1] = Recognizer(bundle, Choice(TARGET, backend, {}))
        return opened[-1], cuda, encoder

    yield build_one
    put("memory", MEMORY)
    for each in opened:
        each.close()
    assert held() == before


def calls(name):
    """How often a function of the driver is called inside of the block: `with calls("cuMemcpyAsync") as count`."""

    class Count:
        def __enter__(self):
            self.before = get(name)
            return self

        def __exit__(self, *_):
            self.number = get(name) - self.before

    return Count()


@pytest.fixture(scope="module")
def proof(gpu_bundle):
    """Images uint8 [6,64,64,3] and their scores: the encoder's graph, and the specification of the head in float64."""
    bundle = Bundle.open(gpu_bundle)
    target = bundle.manifest.targets[TARGET]
    images, pytorch = bundle.proof()
    session = onnxruntime.InferenceSession(bundle.file(target.files["encoder"]), providers=["CPUExecutionProvider"])
    u, g = (x.astype(np.float64) for x in session.run(["u", "g"], {"image": images}))
    head = load_file(bundle.file(target.files["head"]))
    v, q, t = (
        head["v"].astype(np.float16).astype(np.float64),
        head["q"].astype(np.float64),
        head["t"].astype(np.float64),
    )
    expected = to_scores(bilinear_attention_pool(u, v, q, g, t)[0], bundle.manifest.probability)
    np.testing.assert_allclose(expected, pytorch.scores, atol=5e-3)
    return images, expected


def test_these_images_can_be_told_apart(proof):
    """Else a wrong image, or none, would pass as the right one."""
    expected = proof[1]
    others = [np.abs(a - b).max() for i, a in enumerate(expected) for b in expected[:i]]
    assert min(others) > 3 * EXACT


@pytest.mark.parametrize("captured", [True, False])
def test_scores_are_pytorch_s_first_and_replayed(make, proof, captured):
    recognizer, _, encoder = make(captured=captured)
    images, expected = proof
    with calls("cuGraphLaunch") as replays, calls("cuStreamBeginCapture") as captures:
        for _ in range(3):
            np.testing.assert_allclose(recognizer.scores(images), expected, atol=EXACT)
    assert replays.number == (2 if captured else 0)
    assert captures.number == (1 if captured else 0)
    assert encoder.warm == 1


def test_attention_is_the_portable_model_s(make, proof, gpu_bundle):
    images, _ = proof
    with Recognizer.open(gpu_bundle, "cpu:fp32") as portable:
        scores, attention = portable.attention(images)
    for _ in range(2):
        ours = make()[0].attention(images)
        np.testing.assert_allclose(ours[0], scores, atol=5e-3)
        np.testing.assert_allclose(ours[1], attention, atol=5e-3)


@pytest.mark.parametrize("captured", [True, False])
def test_embeddings_are_the_specification_of_g(make, proof, gpu_bundle, captured):
    """First computed and replayed, beside the scores; the kernel's buffers for them come when they are asked for."""
    images, expected = proof
    bundle = Bundle.open(gpu_bundle)
    path = bundle.file(bundle.manifest.targets[TARGET].files["encoder"])
    (g,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["g"], {"image": images})
    recognizer, _, _ = make(captured=captured)
    for _ in range(2):
        scores, embeddings = recognizer.embeddings(images)
        np.testing.assert_allclose(scores, expected, atol=EXACT)
        np.testing.assert_allclose(embeddings, mean_embedding(g.astype(np.float64)), atol=1e-5)
    np.testing.assert_allclose(recognizer.scores(images), expected, atol=EXACT)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_any_batch_fits_a_bucket_and_padding_is_not_seen(make, proof, batch):
    recognizer, _, encoder = make(profile=Profile(min=1, opt=2, max=4))
    images, expected = proof
    np.testing.assert_allclose(recognizer.scores(images[:batch]), expected[:batch], atol=EXACT)
    assert set(encoder.batches) <= {1, 2, 4}


@pytest.mark.parametrize(
    ("profile", "sizes"), [((1, 8, 64), [1, 2, 4, 8, 16, 32, 64]), ((1, 1, 1), [1]), ((3, 4, 12), [3, 4, 8, 12])]
)
def test_buckets_are_powers_of_two_inside_the_profile(profile, sizes):
    assert batch_sizes(Profile(**dict(zip(("min", "opt", "max"), profile, strict=True)))) == sizes


@pytest.fixture
def on_device():
    """on_device(cuda, images, offset=0, ...) -> images on a GPU as PyTorch, CuPy or PyCUDA describe theirs."""
    made = []

    class OnDevice:
        def __init__(self, device, images, offset=0, **changes):
            with device.current():
                self.device, self.base = device, device.allocate(images.nbytes + offset)
            ctypes.memmove(self.base + offset, images.ctypes.data, images.nbytes)
            self.shape, self.dtype = images.shape, images.dtype
            self.__cuda_array_interface__ = {
                "shape": images.shape, "typestr": "|u1", "strides": None, "data": (self.base + offset, False),
                "version": 3,
            } | changes  # fmt: skip
            made.append(self)

    yield OnDevice
    for array in made:
        with array.device.current():
            array.device.free(array.base)


@pytest.mark.parametrize(("least", "offset"), [(1, 0), (4, 0), (1, 1), (1, 128), (1, 256)])
def test_images_on_the_device_go_through_the_buckets_graphs(make, on_device, proof, least, offset):
    """Copied on the GPU, whatever their address: an engine's context that was captured must not be told another one."""
    recognizer, device, encoder = make(profile=Profile(min=least, opt=4, max=4))
    images, expected = proof
    right, given = encoder.enqueue, set()

    def enqueue(batch, image, outputs, stream):
        given.add((batch, image))
        right(batch, image, outputs, stream)

    encoder.enqueue = enqueue
    recognizer.scores(images)
    there = on_device(device, images, offset)
    with calls("cuMemcpyAsync") as copies, calls("cuGraphLaunch") as replays:
        np.testing.assert_allclose(recognizer.scores(there), expected, atol=EXACT)
    assert (copies.number, replays.number) == (2, 2)  # six images: a bucket of 4, then one of 2, or of 4 again
    assert len(given) == (2 if least == 1 else 1), "a batch size has one address"


def test_wrong_arrays_on_the_device_are_named(make, on_device, proof):
    recognizer, device, _ = make()
    with pytest.raises(ValueError, match="expected contiguous images on the GPU"):
        recognizer.scores(on_device(device, proof[0], strides=(1, 2, 3, 4)))
    with pytest.raises(ValueError, match=r"expected images uint8 \[B,64,64,3\], got float32"):
        recognizer.scores(on_device(device, proof[0], typestr="<f4"))
    with pytest.raises(ValueError, match="images: expected memory of device 0, got device 1"):
        recognizer.scores(on_device(Cuda(1), proof[0]))
    with pytest.raises(ValueError, match="images: expected memory of device 0, got memory that CUDA does not know"):
        recognizer.scores(on_device(device, proof[0], data=(proof[0].ctypes.data, False)))
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)


def test_no_images_on_the_device(make, on_device, proof):
    recognizer, device, _ = make()
    empty = on_device(device, proof[0][:0], data=(0, False))
    assert recognizer.scores(empty).shape == (0, 10)
    assert recognizer.attention(empty)[1].shape[:2] == (0, 10)


def test_the_second_gpu(make, on_device, proof):
    recognizer, device, _ = make(device=1)
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)
    np.testing.assert_allclose(recognizer.scores(on_device(device, proof[0])), proof[1], atol=EXACT)


def test_a_full_gpu_takes_smaller_batches_and_then_says_so(make, proof):
    recognizer, _, encoder = make(profile=Profile(min=1, opt=4, max=4))
    recognizer.scores(proof[0][:1])
    put("memory", get("used") + 30_000)  # room for two images, not for four
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)
    assert max(encoder.batches) == 2
    recognizer.close()
    put("memory", MEMORY)

    crowded, _, _ = make()
    full = get("used")
    put("memory", full)
    with pytest.raises(UserError, match="too little free memory"):
        crowded.scores(proof[0])
    assert get("used") == full
    put("memory", MEMORY)
    np.testing.assert_allclose(crowded.scores(proof[0]), proof[1], atol=EXACT)


@pytest.mark.parametrize("limit", ["most", "most_running"])
@pytest.mark.parametrize("there", [False, True])
def test_an_engine_that_runs_out_of_memory_gets_smaller_batches(make, on_device, proof, limit, there):
    recognizer, device, encoder = make(profile=Profile(min=1, opt=4, max=4))
    setattr(encoder, limit, 2)
    images = on_device(device, proof[0]) if there else proof[0]
    np.testing.assert_allclose(recognizer.scores(images), proof[1], atol=EXACT)
    assert max(encoder.batches) == 2
    assert set(encoder.forgotten) == {4}


def test_a_capture_that_fails_costs_only_the_graph(make, proof):
    """An engine that allocates while it runs breaks the capture."""
    recognizer, _, encoder = make()
    encoder.allocates_while_running = True
    with calls("cuStreamBeginCapture") as captures, calls("cuGraphLaunch") as replays:
        for _ in range(CAPTURES + 2):
            np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)
    assert (captures.number, replays.number, encoder.warm) == (CAPTURES, 0, 1)
    about = recognizer.backend.describe()
    assert about["cuda_graphs"] == "False"
    assert about["broken_captures"] == f"{CAPTURES}, 1 graphs given up"
    recognizer.backend.on_device(proof[0])()  # a graph of its own, which is given up as well


def test_what_fails_under_capture_for_another_reason_is_not_tried_again(make, proof):
    recognizer, _, encoder = make()
    right, runs = encoder.enqueue, []

    def enqueue(*arguments):
        runs.append(arguments)
        if len(runs) == 2:  # the first one under capture
            raise RuntimeError("the engine failed (no reason given)")
        right(*arguments)

    encoder.enqueue = enqueue
    with calls("cuStreamBeginCapture") as captures, calls("cuGraphLaunch") as replays:
        for _ in range(2):
            np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)
    assert (captures.number, replays.number) == (1, 0)
    assert "broken_captures" not in recognizer.backend.describe()


def test_attention_takes_memory_only_when_it_is_asked_for(make, proof):
    recognizer, _, _ = make(profile=Profile(min=8, opt=8, max=8))
    recognizer.scores(proof[0])
    before = get("used")
    recognizer.attention(proof[0])
    assert get("used") - before == 8 * 10 * 4 * 4  # [B,C,L] floats


def test_arrays_that_do_not_name_their_stream_are_waited_for(make, on_device, proof):
    recognizer, device, _ = make()
    with device.current():
        stream = device.make_stream()
    with calls("cuCtxSynchronize") as waits:
        recognizer.scores(on_device(device, proof[0], version=2))  # as PyTorch's
        recognizer.scores(on_device(device, proof[0], stream=stream))
    assert waits.number == 1
    with device.current():
        device.destroy_stream(stream)


@pytest.mark.parametrize("seed", range(4))  # without waiting, some orders happen to be right
def test_images_that_a_stream_still_writes_are_waited_for(make, on_device, proof, seed):
    put("seed", seed)
    recognizer, device, _ = make()
    images, expected = proof
    there = on_device(device, np.zeros_like(images))
    with device.current():
        stream, pinned = device.make_stream(), device.allocate_pinned(images.nbytes)
        pinned.array[:] = images.reshape(-1)
        device.copy(there.base, pinned.pointer, images.nbytes, stream)
    there.__cuda_array_interface__["stream"] = stream
    np.testing.assert_allclose(recognizer.scores(there), expected, atol=EXACT)
    with device.current():
        device.free_pinned(pinned)
        device.destroy_stream(stream)


@pytest.mark.parametrize("room", [0, 500, 1000])
def test_a_head_that_does_not_fit_leaves_nothing_behind(make, room):
    before = held()
    put("memory", room)
    with pytest.raises(UserError, match="too little free memory"):
        make()
    put("memory", MEMORY)
    assert held() == before


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
    np.testing.assert_allclose(recognizer.scores(proof[0]), proof[1], atol=EXACT)


def test_many_batches_allocate_nothing_new_and_closing_frees_everything(make, proof):
    before = held()
    recognizer, _, encoder = make(profile=Profile(min=1, opt=2, max=2))
    recognizer.scores(proof[0][:2])
    recognizer.attention(proof[0][:2])
    after_first = held()
    for _ in range(2):
        recognizer.scores(proof[0][:2])
        recognizer.attention(proof[0][:2])
    assert held() == after_first
    recognizer.close()
    recognizer.close()
    assert held() == before
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
        np.testing.assert_allclose(scores[0], expected[i], atol=EXACT)


def in_threads(*works):
    """Run these at once; raise what one of them raised."""
    failures = []

    def run(work):
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


def test_two_callers_overlap_each_in_a_slot(make, proof):
    """While the first caller's batch is on its way, the second one's has been copied in and is enqueued too."""
    recognizer, _, encoder = make()
    images, expected = proof
    encoder.captured = False
    with recognizer.backend._slots.take():
        recognizer.scores(images[:1])  # the first run of a slot is alone: here the second's, then the first's
    recognizer.scores(images[:1])
    entered, both = [], threading.Event()
    right = encoder.enqueue

    def enqueue(*arguments):
        entered.append(arguments[-1])
        if len(entered) == 2:
            both.set()
        assert both.wait(timeout=30), "the second caller waited for the first"
        right(*arguments)

    encoder.enqueue = enqueue
    results = {}
    in_threads(*(lambda i=i: results.update({i: recognizer.scores(images[i : i + 1])}) for i in range(2)))
    assert len(set(entered)) == 2  # streams
    for i in range(2):
        np.testing.assert_allclose(results[i][0], expected[i], atol=EXACT)


@pytest.mark.parametrize("version", [2, 3])
def test_images_of_others_may_come_while_another_batch_is_captured(make, on_device, proof, version):
    """Waiting for the whole GPU, as PyTorch's arrays ask for (version 2), would break the capture and fail itself."""
    recognizer, device, encoder = make()
    images, expected = proof
    there = on_device(device, images, version=version)
    capturing, results = threading.Event(), {}
    right, enqueued = encoder.enqueue, []

    def enqueue(*arguments):
        enqueued.append(arguments)
        if len(enqueued) == 2:  # the first caller's second: under capture
            capturing.set()
            time.sleep(0.2)  # for the other caller to get in
        right(*arguments)

    encoder.enqueue = enqueue

    def other():
        assert capturing.wait(timeout=30)
        results["there"] = recognizer.scores(there)

    in_threads(lambda: results.update({"host": recognizer.scores(images)}), other)
    with calls("cuGraphLaunch") as replays:
        recognizer.scores(images)
    assert replays.number == 1
    for scores in results.values():
        np.testing.assert_allclose(scores, expected, atol=EXACT)


def test_an_engine_may_wait_for_the_whole_gpu_when_it_is_first_used(make, proof):
    """As they may while they compile and load; in the other slot a graph may be under capture then."""
    recognizer, _, encoder = make()
    images, expected = proof
    right, runs, capturing = encoder.enqueue, [], threading.Event()

    def enqueue(*arguments):
        stream = arguments[-1]
        runs.append(stream)
        if runs.count(stream) == 1:
            call("cuCtxSynchronize")
        elif not capturing.is_set():
            capturing.set()
            for _ in range(1000):  # until the other caller has the second slot
                time.sleep(0.01)
                if not recognizer.backend._slots._free:
                    break
        right(*arguments)

    encoder.enqueue = enqueue
    results = {}

    def other():
        assert capturing.wait(timeout=30)
        results[1] = recognizer.scores(images)

    in_threads(lambda: results.update({0: recognizer.scores(images)}), other)
    assert len(set(runs)) == 2
    for i in range(2):
        np.testing.assert_allclose(results[i], expected, atol=EXACT)


@pytest.mark.parametrize(("broken", "replayed"), [(1, 1), (4, 1), (CAPTURES, 0)])
def test_a_capture_that_another_library_breaks_is_left_to_the_next_call(make, proof, broken, replayed):
    """As `torch.cuda.synchronize` of another thread does, which cannot know of it, and may be called in a loop."""
    recognizer, device, encoder = make()
    images, expected = proof
    right, runs = encoder.enqueue, []

    def enqueue(*arguments):
        right(*arguments)
        runs.append(arguments)
        if len(runs) % 2 == 0 and len(runs) <= 2 * broken:  # each call runs once, and once more under capture

            def wait():
                with device.current(), contextlib.suppress(DriverError):
                    call("cuCtxSynchronize")

            in_threads(wait)

    encoder.enqueue = enqueue
    with calls("cuGraphLaunch") as replays:
        for _ in range(broken + 1 + replayed):
            np.testing.assert_allclose(recognizer.scores(images), expected, atol=EXACT)
    assert replays.number == replayed
    given_up = int(broken == CAPTURES)
    assert recognizer.backend.describe()["broken_captures"] == f"{broken}, {given_up} graphs given up"


def test_one_caller_alone_takes_the_memory_of_one_slot(make, proof):
    recognizer, _, _ = make()
    recognizer.scores(proof[0])
    first = get("used")
    recognizer.scores(proof[0])
    assert get("used") == first


def test_a_gpu_without_room_for_two_slots_goes_on_with_one(make, proof):
    recognizer, _, encoder = make(profile=Profile(min=1, opt=2, max=2))
    images, expected = proof
    recognizer.scores(images[:2])
    put("memory", get("used") + 10_000)  # not enough for another bucket
    encoder.during = lambda: time.sleep(0.01)
    results = {}
    in_threads(*(lambda i=i: results.update({i: recognizer.scores(images[i : i + 2])}) for i in range(4)))
    for i in range(4):
        np.testing.assert_allclose(results[i], expected[i : i + 2], atol=EXACT)


def test_a_forked_child_is_told(make, proof):
    recognizer, _, _ = make()
    images, expected = proof
    recognizer.scores(images)
    child = os.fork()
    if child == 0:
        try:
            recognizer.scores(images)
        except RuntimeError as error:
            recognizer.close()
            os._exit(7 if "open it there" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    np.testing.assert_allclose(recognizer.scores(images), expected, atol=EXACT)


def test_the_first_slot_takes_the_memory_of_the_second(make, proof):
    recognizer, _, _ = make(profile=Profile(min=1, opt=1, max=4))
    images, expected = proof
    slots = recognizer.backend._slots
    with slots.take():
        recognizer.scores(images[:1])  # in the second slot
    assert [bool(slot.buckets) for slot in slots.all] == [False, True]
    streams = get("streams")
    put("memory", get("used") + 30_000)
    np.testing.assert_allclose(recognizer.scores(images[:4]), expected[:4], atol=EXACT)
    assert get("streams") == streams - 1


def test_closing_waits_for_what_is_on_its_way(make, proof):
    recognizer, _, encoder = make()
    images, expected = proof
    recognizer.scores(images)
    running, results = threading.Event(), []
    encoder.during = lambda: (running.set(), time.sleep(0.1))

    def close():
        running.wait(timeout=30)
        recognizer.close()

    in_threads(lambda: results.append(recognizer.scores(images)), close)
    np.testing.assert_allclose(results[0], expected, atol=EXACT)
    assert encoder.closed


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_the_streams_gives_the_same_scores(make, on_device, proof, seed):
    """The driver runs the two slots' streams in a random order beside each other."""
    put("seed", seed)
    recognizer, device, _ = make(profile=Profile(min=1, opt=2, max=4))
    images, expected = proof
    there = on_device(device, images)

    def work(i):
        for n in (1, 3):
            source = there if (i + n) % 4 == 0 else images[i : i + n]
            right = expected if source is there else expected[i : i + n]
            np.testing.assert_allclose(recognizer.scores(source), right, atol=EXACT)

    in_threads(*(lambda i=i: work(i) for i in range(4)))


def test_a_measured_call_ends_with_its_bucket(make, proof):
    """On a GPU, replaying a graph that is freed is no error but a crash."""
    recognizer, _, encoder = make(profile=Profile(min=1, opt=4, max=4))
    backend = recognizer.backend
    call = backend.on_device(proof[0][:4])
    call()
    encoder.most = 2  # as when others have taken the memory
    np.testing.assert_allclose(recognizer.scores(proof[0][:4]), proof[1][:4], atol=EXACT)
    with calls("cuGraphLaunch") as launches, pytest.raises(UserError, match="no room for a batch of 4 any more"):
        call()
    assert launches.number == 0


def test_a_call_without_transfers_can_be_measured(make, proof):
    recognizer, _, _ = make()
    call = recognizer.backend.on_device(proof[0])
    with calls("cuMemcpyAsync") as copies:
        call()
    assert copies.number == 0
    assert issubclass(OutOfMemoryError, UserError)
