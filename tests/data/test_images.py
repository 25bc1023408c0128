import numpy as np
import pytest

from sdpl.data.formats import read_labels
from sdpl.data.images import LabelledImages, count_labels, evenly_taken, require_known_labels
from sdpl.data.reading import Unreadable, batches
from sdpl.errors import UserError
from sdpl.evaluate.evaluation import score_all
from sdpl.pipeline import Pixels
from sdpl.preprocess import preprocess


def test_a_category_without_any_known_label_is_named():
    labels = np.array([[1, 0], [-1, 0]], dtype=np.int8)
    with pytest.raises(UserError, match=r"no known label at all for 1 of 2 categories \(dog\)"):
        require_known_labels(LabelledImages((), labels, ("cat", "dog")))
    require_known_labels(LabelledImages((), np.array([[1, 0], [0, -1]], np.int8), ("cat", "dog")))


@pytest.mark.parametrize(
    ("count", "most", "taken"), [(0, 4, []), (1, 4, [0]), (4, 9, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (9, 1, [0])]
)
def test_positions_are_taken_evenly_from_the_first_to_the_last(count, most, taken):
    assert evenly_taken(count, most) == taken


def test_zeros_that_were_meant_as_absent_are_noticed():
    with pytest.raises(UserError, match=r"no label says that anything is absent: .*write -1 \(absent\)"):
        require_known_labels(LabelledImages((), np.array([[1, 0], [0, 1]], np.int8), ("cat", "dog")))


def test_batches_keep_order_and_content(scenes):
    data = read_labels(scenes / "annotations" / "instances_train.json").subset([5, 3, 9, 1, 0])
    seen = list(batches(data, 32, 2))
    assert [len(images) for images, _ in seen] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), data.labels)
    for row, path in zip(np.concatenate([images for images, _ in seen]), data.images, strict=True):
        np.testing.assert_array_equal(row, preprocess(path, 32))


def test_an_unreadable_image_is_named(scenes, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    data = LabelledImages((bad,), np.ones((1, 1), np.int8), ("a",))
    with pytest.raises(UserError, match=r"bad\.jpg: is not an image"):
        list(batches(data, 32, 2))


def test_unreadable_images_are_skipped_once_named_and_counted(scenes, tmp_path):
    good = read_labels(scenes / "annotations" / "instances_train.json").subset(range(5))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    data = LabelledImages((bad, bad, *good.images), np.concatenate([good.labels[:2], good.labels]), good.categories)
    lines: list[str] = []
    unreadable = Unreadable("skip", lambda said: lines.append(said.step))
    seen = list(batches(data, 32, 2, unreadable=unreadable))
    assert [len(images) for images, _ in seen] == [2, 2, 1]  # nothing is left of the first batch
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), good.labels)
    assert data.without(unreadable.images).images == good.images
    scores = score_all(lambda images: images.mean(axis=(1, 2)), data, Pixels(32), 3, unreadable=unreadable)
    assert len(scores) == 5
    assert len(lines) == 1
    assert "bad.jpg: is not an image" in lines[0]


def test_nothing_readable_is_said(tmp_path):
    data = LabelledImages((tmp_path / "gone.jpg",), np.ones((1, 1), np.int8), ("a",))
    with pytest.raises(UserError, match="none of 1 images could be read; `sdpl-data check` says why"):
        score_all(lambda images: images, data, Pixels(32), 2, unreadable=Unreadable("skip"))


def test_counts_of_each_category():
    labels = np.array([[1, 0], [-1, 0], [1, -1]], dtype=np.int8)
    cat, dog = count_labels(LabelledImages((), labels, ("cat", "dog")))
    assert (cat.category, cat.known, cat.positive, cat.negative, cat.unknown) == ("cat", 3, 2, 1, 0)
    assert (dog.category, dog.known, dog.positive, dog.negative, dog.unknown) == ("dog", 1, 0, 1, 2)
