import io
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sdpl.errors import UserError
from sdpl.runtime import Recognition, Recognizer
from sdpl.runtime.backends import Choice


@pytest.fixture(scope="module")
def recognizer(bundle):
    with Recognizer.open(bundle) as opened:
        yield opened


@pytest.fixture
def photos(scenes):
    return sorted((scenes / "test").iterdir())


def test_recognizes_paths_bytes_and_pil_alike(recognizer, photos):
    path = photos[0]
    first, second, third = recognizer.recognize([path, path.read_bytes(), Image.open(io.BytesIO(path.read_bytes()))])
    assert isinstance(first, Recognition)
    assert first == second == third


def test_an_iterator_of_any_length_gives_results_as_they_come(recognizer, photos):
    taken = []
    results = recognizer.recognize(taken.append(path) or path for path in itertools.cycle(photos))
    first = [next(results) for _ in range(20)]
    assert first == (recognizer.recognize(photos) * 3)[:20]
    assert len(taken) < 200
    results.close()


def test_a_stream_goes_on_behind_a_bad_image(recognizer, photos, tmp_path):
    sources = [photos[0], tmp_path / "gone.jpg", photos[1].read_bytes()]
    seen = list(recognizer.stream(sources, with_attention=True))
    assert [source for source, _ in seen] == sources
    assert "gone.jpg: no such image" in str(seen[1][1])
    scores, attention = recognizer.attention(recognizer.preprocess(photos[1])[None])
    np.testing.assert_array_equal(seen[2][1].scores, scores[0])
    np.testing.assert_array_equal(seen[2][1].attention, attention[0])


def test_scores_are_those_of_each_image_best_first(recognizer, photos):
    results = recognizer.recognize(photos * 3)  # more than one engine batch
    assert len(results) == 24
    assert results[:8] == results[8:16] == results[16:]
    values = list(results[0].scores.values())
    assert values == sorted(values, reverse=True)
    assert set(results[0].scores) == set(recognizer.categories)


def test_thresholds_decide_the_labels():
    manifest = type("M", (), {"categories": ("a", "b", "c"), "thresholds": (0.5, 0.9, 0.1)})
    recognizer = Recognizer(type("B", (), {"manifest": manifest}), Choice("cpu:fp32", None, {}))
    scores = np.array([0.5, 0.8, 0.2], dtype=np.float32)
    assert recognizer.recognition(scores).labels == ("a", "c")
    assert recognizer.recognition(scores, threshold=0.6).labels == ("b",)
    assert list(recognizer.recognition(scores).scores) == ["b", "a", "c"]


def test_attention_adds_up_to_one_on_the_map(recognizer, photos):
    images = np.stack([recognizer.preprocess(p) for p in photos])
    scores, attention = recognizer.attention(images)
    assert attention.shape == (8, 10, 2, 2)
    np.testing.assert_allclose(attention.sum(axis=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores, recognizer.scores(images))


def test_empty_batch(recognizer):
    none = np.zeros((0, 64, 64, 3), np.uint8)
    assert recognizer.scores(none).shape == (0, 10)
    assert [part.shape for part in recognizer.attention(none)] == [(0, 10), (0, 10, 2, 2)]
    assert recognizer.recognize([]) == []


def test_arrays_and_columns_of_paths_are_many_images(recognizer, photos):
    expected = recognizer.recognize(photos)
    assert recognizer.recognize(np.array([str(photo) for photo in photos])) == expected
    assert recognizer.recognize(np.array(photos, dtype=object)) == expected


def test_numbers_that_cannot_be(recognizer, bundle, photos):
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(UserError, match=f"batch_size {wrong!r}: expected a whole number, at least 1"):
            recognizer.recognize(photos, batch_size=wrong)
        for option in ("threads", "streams"):
            with pytest.raises(UserError, match=f"--{option} {wrong!r}: expected a whole number, at least 1"):
                Recognizer.open(bundle, **{option: wrong})
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="expected a number from 0 to 1"):
            recognizer.recognize(photos, threshold=wrong)


def test_a_closed_recognizer_says_so(bundle, photos):
    recognizer = Recognizer.open(bundle)
    recognizer.recognize(photos[0])
    going = recognizer.recognize(iter(photos * 20), batch_size=1)
    next(going)
    recognizer.close()
    for call in (
        lambda: recognizer.recognize(photos[0]),
        lambda: recognizer.scores(np.zeros((1, 64, 64, 3), np.uint8)),
    ):
        with pytest.raises(RuntimeError, match="this recognizer is closed"):
            call()
    with pytest.raises(RuntimeError, match="closed"):
        list(going)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 32, 64, 3), np.uint8)],
)
def test_a_wrong_array_says_expected_and_got(recognizer, images):
    with pytest.raises(ValueError, match=r"expected images uint8 \[B,64,64,3\], got .* \["):
        recognizer.scores(images)


def test_scores_from_many_threads(recognizer, photos):
    images = np.stack([recognizer.preprocess(p) for p in photos])
    expected = [recognizer.scores(images[i : i + 1]) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: recognizer.scores(images[i % 8 : i % 8 + 1]), range(64)))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 8])


def test_a_bad_image_is_named(recognizer, photos, tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
        recognizer.recognize([photos[0], tmp_path / "gone.jpg"])


def test_closed_means_closed(bundle):
    recognizer = Recognizer.open(bundle)
    recognizer.close()
    with pytest.raises(RuntimeError, match="closed"):
        recognizer.scores(np.zeros((1, 64, 64, 3), np.uint8))


def test_an_unknown_backend_is_named(bundle):
    with pytest.raises(UserError, match="backend 'onnxruntime-gpu': did you mean 'onnxruntime-c"):
        Recognizer.open(bundle, backend="onnxruntime-gpu")


def test_a_damaged_graph_behind_a_right_hash_is_one_line(bundle, tmp_path):
    import json

    from sdpl.bundle import sha256

    copy = shutil.copytree(bundle, tmp_path / "copy.sdpl")
    (copy / "model.onnx").write_bytes(b"not onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"sha256": sha256(copy / "model.onnx"), "size": 8}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is no ONNX graph of a bundle"):
        Recognizer.open(copy)
