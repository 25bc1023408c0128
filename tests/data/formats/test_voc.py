import numpy as np
import pytest

from sdpl.data.formats import read_labels
from sdpl.errors import UserError

NAMES = ("000005", "000007", "000009")
FILES = {"cat": (1, -1, 0), "aeroplane": (-1, -1, 1)}  # 0: only difficult objects


@pytest.fixture
def main(tmp_path):
    """VOCdevkit's layout, with a second split beside the one under test."""
    folder = tmp_path / "VOC2007" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (tmp_path / "VOC2007" / "JPEGImages").mkdir()
    for name in NAMES:
        (tmp_path / "VOC2007" / "JPEGImages" / f"{name}.jpg").touch()
    for split, names in (("trainval", NAMES), ("val", NAMES[:1])):
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
        for category, labels in FILES.items():
            rows = zip(names, labels, strict=False)
            (folder / f"{category}_{split}.txt").write_text("".join(f"{name} {label:2d}\n" for name, label in rows))
    return folder


def test_difficult_only_counts_as_absent_and_categories_are_alphabetical(main):
    data = read_labels(main / "trainval.txt")
    assert data.categories == ("aeroplane", "cat")
    np.testing.assert_array_equal(data.labels, [[-1, 1], [-1, -1], [1, -1]])
    assert [path.name for path in data.images] == [f"{name}.jpg" for name in NAMES]
    assert all(path.is_file() for path in data.images)


def test_a_split_is_not_taken_for_another(main):
    np.testing.assert_array_equal(read_labels(main / "val.txt").labels, [[-1, 1]])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cat_trainval.txt", "000005 2\n", r"cat_trainval.txt:1: '000005 2': expected an image and 1, -1 or 0"),
        ("cat_trainval.txt", "000005\n", r"cat_trainval.txt:1: '000005': expected an image and 1, -1 or 0"),
        ("cat_trainval.txt", "000005 1\n", r"does not list the images of its split \(2 differ: 000007, 000009\)"),
        ("trainval.txt", "", "trainval.txt: lists no image"),
        ("trainval.txt", "\udcff", "is not a text file"),
        ("trainval.txt", "../../secret\n", "does not list the images of its split"),
    ],
)
def test_what_does_not_fit_is_named(main, file, text, message):
    (main / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_labels(main / "trainval.txt")


def test_a_category_s_own_file_is_not_a_split(main):
    with pytest.raises(UserError, match=r"no category files such as aeroplane_cat_trainval.txt.*name the list"):
        read_labels(main / "cat_trainval.txt")


def test_missing_images_and_files(main):
    (main.parents[1] / "JPEGImages" / "000007.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images are not in .*JPEGImages \(000007.jpg\)"):
        read_labels(main / "trainval.txt")
    with pytest.raises(UserError, match="no such annotation file"):
        read_labels(main / "test.txt")
