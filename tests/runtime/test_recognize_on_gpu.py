"""Photos to scores on the driver of host memory: decoded on the CPU, resized on the GPU, to the bits of the CPU's."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from host_driver import get, put
from host_encoder import HostEncoder
from PIL import Image

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.runtime import backends, decoding, engines, gpu_resize
from sdpl.runtime.backends import Choice, Cores
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.two_stage import TwoStage

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

TARGET = "rtx:sm86:fp16"
MEMORY = 1 << 30
HELD = ("used", "pinned", "streams", "graphs", "modules")
SIZES = [(64, 64), (640, 480), (9, 300), (80, 50), (8, 8), (200, 333), (64, 128)]  # widths, heights


def host_engine(bundle, name, target, device):
    return HostEncoder(bundle.file(target.files["encoder"]))


@pytest.fixture
def open_bundle(monkeypatch, gpu_bundle):
    """open_bundle(path) -> a recognizer as `Recognizer.open` makes it, but for the engine. Nothing of it stays."""
    monkeypatch.setitem(engines.ENCODERS, "tensorrt-rtx", host_engine)
    before, opened = {name: get(name) for name in HELD}, []

    def make(path=gpu_bundle):
        bundle = Bundle.open(path)
        backend = backends._open(bundle, TARGET, Cores.of(1), 0)
        opened.append(Recognizer(bundle, Choice(TARGET, backend, {})))
        return opened[-1]

    yield make
    put("memory", MEMORY)
    for each in opened:
        each.close()
    assert {name: get(name) for name in HELD} == before


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos():
    """Of many sizes and kinds: PNG, JPEG that is decoded at a smaller scale, turned by EXIF, transparent, grey."""
    rng = np.random.default_rng(3)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = pictures[3].resize((900, 700))
    return [
        *(encoded(picture) for picture in pictures),
        encoded(smooth, "JPEG"),
        encoded(pictures[5], "JPEG", exif=exif.tobytes()),
        encoded(pictures[1].convert("RGBA").rotate(30)),
        encoded(pictures[5].convert("L")),
        pictures[1],
        np.asarray(pictures[5]),
    ]


def streamed(recognizer, photos, **options):
    return [scored for _, scored in recognizer.stream(photos, **options)]


def expected_of(recognizer, photos, batch):
    """Scores [N,C] of CPU-resized pixels, in the same batches."""
    pixels = np.stack([recognizer.preprocess(photo) for photo in photos])
    return np.concatenate([recognizer.scores(pixels[i : i + batch]) for i in range(0, len(pixels), batch)])


@pytest.mark.parametrize(("batch", "seed"), [(1, 0), (4, 0), (4, 1), (4, 2), (64, 0)])
def test_scores_are_those_of_pixels_that_the_cpu_resized(open_bundle, photos, batch, seed):
    put("seed", seed)
    recognizer = open_bundle()
    assert recognizer.backend.describe()["resize"] == "GPU"
    expected = expected_of(recognizer, photos, batch)
    launches = get("cuLaunchKernel")
    for _ in range(2):
        found = streamed(recognizer, photos, batch_size=batch)
        np.testing.assert_array_equal([scored.scores for scored in found], expected)
    assert get("cuLaunchKernel") - launches >= 4 * -(-len(photos) // batch)  # two passes a batch, twice
    assert len(np.unique(expected, axis=0)) >= 10  # of 13 photos, some of which are another's picture


def test_the_pixels_on_the_gpu_are_the_cpu_s_bit_by_bit(open_bundle, photos):
    recognizer = open_bundle()
    seen, encoder = [], recognizer.backend._encoder
    run = encoder.session.run

    class Watching:
        def run(self, names, inputs):
            seen.append(inputs["image"].copy())
            return run(names, inputs)

    encoder.session = Watching()
    streamed(recognizer, photos, batch_size=len(photos))
    pixels = np.stack([recognizer.preprocess(photo) for photo in photos])
    np.testing.assert_array_equal(seen[0][: len(photos)], pixels)


def test_attention_and_labels_come_the_same_way(open_bundle, photos):
    recognizer = open_bundle()
    pixels = np.stack([recognizer.preprocess(photo) for photo in photos[:4]])
    scores, attention = recognizer.attention(pixels)
    found = recognizer.recognize(photos[:4], attention=True)
    for recognition, right, maps in zip(found, scores, attention, strict=True):
        assert recognition.target == TARGET
        assert recognition.scores == {
            name: float(right[recognizer.categories.index(name)]) for name in recognition.scores
        }
        np.testing.assert_array_equal(np.stack([recognition.attention[c] for c in recognizer.categories]), maps)


def test_unreadable_images_are_named_and_the_others_scored(open_bundle, photos):
    recognizer = open_bundle()
    bad = [photos[0], b"no image", photos[1], encoded(Image.new("RGB", (4, 4)))]
    results = streamed(recognizer, bad)
    assert [type(result).__name__ for result in results] == ["Scored", "UserError", "Scored", "UserError"]
    np.testing.assert_array_equal(
        [results[0].scores, results[2].scores], expected_of(recognizer, [photos[0], photos[1]], 4)
    )
    with pytest.raises(UserError, match="is not an image"):
        recognizer.recognize(bad)


def test_large_pictures_and_too_many_waiting_ones_are_resized_on_the_cpu(open_bundle, photos, monkeypatch):
    recognizer = open_bundle()
    expected = expected_of(recognizer, photos, 4)
    monkeypatch.setattr(gpu_resize, "MOST_PIXELS", 64 * 200)
    sizes = {decoding.Decoding(64).load(photo).shape for photo in photos}
    assert (64, 64, 3) in sizes
    assert (50, 80, 3) in sizes
    np.testing.assert_array_equal([s.scores for s in streamed(recognizer, photos, batch_size=4)], expected)
    monkeypatch.undo()

    few = decoding.Decoding(64, most_waiting=3 * 333 * 200 + 10)
    first, second = few.load(photos[5]), few.load(photos[5])
    assert (first.shape, second.shape) == ((333, 200, 3), (64, 64, 3))
    few.collate([first, second])
    assert few.load(photos[5]).shape == (333, 200, 3)


def test_a_gpu_without_room_for_the_pictures_has_the_cpu_resize_them(open_bundle, photos):
    recognizer = open_bundle()
    expected = expected_of(recognizer, photos, 4)
    put("memory", get("used") + 1000)
    np.testing.assert_array_equal([s.scores for s in streamed(recognizer, photos, batch_size=4)], expected)
    held = get("used")
    put("memory", MEMORY)
    np.testing.assert_array_equal([s.scores for s in streamed(recognizer, photos, batch_size=4)], expected)
    assert get("used") > held  # now with its staging


def test_many_batches_take_no_more_memory(open_bundle, photos):
    recognizer = open_bundle()
    streamed(recognizer, photos, batch_size=4)
    before = {name: get(name) for name in (*HELD, "cuMemAlloc", "cuMemHostAlloc")}
    for _ in range(3):
        streamed(recognizer, photos, batch_size=4)
    assert {name: get(name) for name in before} == before


def test_a_bundle_without_the_kernel_compiles_it_or_leaves_it_to_the_cpu(open_bundle, photos, gpu_bundle, tmp_path):
    path = shutil.copytree(gpu_bundle, tmp_path / "m.sdpl")
    bundle = Bundle.open(path)
    target = bundle.manifest.targets[TARGET]
    files = {role: name for role, name in target.files.items() if not role.startswith("resize")}
    bundle.replace_targets({TARGET: target.model_copy(update={"files": files})})
    with open_bundle(path) as compiled:
        assert compiled.backend.resizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_resize, "resize_cubin", _no_nvrtc)
        recognizer = open_bundle(path)
    assert recognizer.backend.describe()["resize"] == "CPU"
    np.testing.assert_array_equal(
        [s.scores for s in streamed(recognizer, photos, batch_size=4)], expected_of(recognizer, photos, 4)
    )
    with pytest.raises(ValueError, match="does not resize"):
        recognizer.backend.scores([np.zeros((8, 8, 3), np.uint8)])


def _no_nvrtc(capability):
    raise UserError("compiling kernels needs NVRTC")


def test_wrong_arrays_are_named(open_bundle):
    backend = open_bundle().backend
    for array in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match=r"expected decoded images uint8 \[H,W,3\]"):
            backend.scores([array])


def test_callers_at_once_get_their_own_scores(open_bundle, photos):
    recognizer = open_bundle()
    expected = expected_of(recognizer, photos, 3)

    def work(shift):
        return [scored.scores for scored in streamed(recognizer, photos[shift:] + photos[:shift], batch_size=3)]

    with ThreadPoolExecutor(4) as pool:
        for shift, found in zip((0, 3, 6, 9), pool.map(work, (0, 3, 6, 9)), strict=True):
            np.testing.assert_allclose(found, np.roll(expected, -shift, axis=0), atol=1e-6)


@pytest.fixture
def commands(monkeypatch, gpu_bundle, sdpl):
    """commands(words...) -> (result, result), of a command on the GPU's target: with its resize, and without."""
    monkeypatch.setitem(engines.ENCODERS, "tensorrt-rtx", host_engine)
    monkeypatch.setattr(backends, "target_obstacle", lambda bundle, name, device: None)
    opened, open_one = [], backends._open
    monkeypatch.setattr(backends, "_open", lambda *words: opened.append(open_one(*words)) or opened[-1])

    def both(read, command, *words):
        found, launches = [], []
        for resizes in (True, False):
            monkeypatch.setattr(TwoStage, "resizes", property(lambda backend, answer=resizes: answer))
            before = get("cuLaunchKernel")
            result = sdpl(command, gpu_bundle, *(word(resizes) if callable(word) else word for word in words))
            assert result.exit_code == 0, result.output
            launches.append(get("cuLaunchKernel") - before)
            found.append(read(resizes))
        assert launches[0] >= launches[1] + 2, "nothing was resized on the GPU"
        return found

    yield both
    for backend in opened:  # commands leave that to the end of their process
        backend.close()


def test_eval_resizes_on_the_gpu_to_the_same_metrics(commands, scenes, tmp_path):
    json_path = tmp_path / "metrics.json"
    labels = scenes / "annotations" / "instances_test.json"
    with_gpu, without = commands(
        lambda resizes: json.loads(json_path.read_text()),
        *("eval", labels, "--images", scenes / "test", "--backend", TARGET, "--json", json_path),
    )
    assert with_gpu == without
    assert with_gpu["images"] == 8


def test_score_resizes_on_the_gpu_to_the_same_rows(commands, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, photo in enumerate([b"no image", *(photo for photo in photos if isinstance(photo, bytes))]):
        (folder / f"{i:02}.png").write_bytes(photo)

    def rows(resizes):
        return pq.read_table(tmp_path / str(resizes) / "shard-000000.parquet").to_pylist()

    out = ("--out", lambda resizes: tmp_path / str(resizes))
    for more in ((), ("--embeddings",)):
        with_gpu, without = commands(rows, "score", folder, *out, "--batch", "4", "--backend", TARGET, *more)
        assert with_gpu == without
        assert len(with_gpu) == 12
        assert sum(bool(row["error"]) for row in with_gpu) == 1
        shutil.rmtree(tmp_path / "True")
        shutil.rmtree(tmp_path / "False")


def test_a_worker_that_is_stopped_early_forgets_what_it_asked_for(open_bundle, photos):
    """Else a worker of many shards would decode less and less for the GPU."""
    recognizer = open_bundle()
    first = recognizer.reading()
    assert first.load(photos[5]).shape == (333, 200, 3)
    assert recognizer.reading()._left == decoding.MOST_WAITING
    assert first._left < decoding.MOST_WAITING


def test_lists_are_named_where_nothing_resizes(gpu_bundle):
    with Recognizer.open(gpu_bundle, "cpu:fp32") as recognizer, pytest.raises(ValueError, match="got list"):
        recognizer.scores([np.zeros((8, 8, 3), np.uint8)])
