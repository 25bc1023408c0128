import numpy as np

from sdpl.data.formats import read_labels
from sdpl.demo.scenes import CATEGORIES, EASY, HARD, SCENE_SIDE, digit_instances, scenes, write_coco


def test_splits_share_no_digit_and_hold_every_class():
    train, test = (digit_instances(split) for split in ("train", "test"))
    seen = {picture.tobytes() for picture in train[0]}
    assert not any(picture.tobytes() in seen for picture in test[0])
    assert len(train[0]) + len(test[0]) == 1797
    assert set(train[1]) == set(test[1]) == set(range(10))


def test_same_arguments_same_pictures():
    first, second = (list(scenes("train", 5, seed=3)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.asarray(a.image), np.asarray(b.image))
        assert a.digits == b.digits


def test_digits_lie_inside_and_stand_out():
    for scene in scenes("test", 20, seed=0):
        assert 1 <= len(scene.digits) <= 4
        for x, y, width, height in scene.boxes:
            assert 0 <= x <= x + width <= SCENE_SIDE
            assert 0 <= y <= y + height <= SCENE_SIDE
            inside = np.asarray(scene.image.convert("L").crop((x, y, x + width, y + height))).astype(float)
            assert np.ptp(inside) > 40


def test_the_coco_reader_reads_what_is_written(tmp_path):
    data = read_labels(write_coco(tmp_path, "test", 6, seed=4))
    expected = list(scenes("test", 6, seed=4))
    assert data.categories == CATEGORIES
    for labels, scene in zip(data.labels, expected, strict=True):
        assert set(np.flatnonzero(labels == 1)) == set(scene.digits)


def test_hard_scenes_hide_the_digits_better():
    sides, contrasts = {}, {}
    for name, difficulty in (("easy", EASY), ("hard", HARD)):
        found = list(scenes("train", 30, seed=5, difficulty=difficulty))
        sides[name] = [width for scene in found for _, _, width, _ in scene.boxes]
        crops = [s.image.convert("L").crop((x, y, x + w, y + h)) for s in found for x, y, w, h in s.boxes]
        contrasts[name] = np.mean([np.asarray(crop).std() for crop in crops])
    assert min(sides["hard"]) >= HARD.digit_sides[0]
    assert max(sides["hard"]) <= HARD.digit_sides[1] < max(sides["easy"])
    assert contrasts["hard"] < contrasts["easy"]
