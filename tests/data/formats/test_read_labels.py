"""What holds for every format; each format has tests of its own beside this file."""

import numpy as np
import pytest

from sdpl.data.formats import read_labels
from sdpl.errors import UserError


def test_a_format_can_be_named(scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_test.json"
    odd = tmp_path / "labels.json.bak"
    odd.write_bytes(annotations.read_bytes())
    with pytest.raises(UserError, match=r"of what format is it\? Expected a COCO .*\(coco, voc, csv, jsonl, parquet"):
        read_labels(odd)
    data = read_labels(odd, scenes / "test", format="coco")
    np.testing.assert_array_equal(data.labels, read_labels(annotations).labels)


def test_categories_of_another_set_are_named(scenes):
    annotations = scenes / "annotations" / "instances_test.json"
    own = read_labels(annotations)
    swapped = read_labels(annotations, categories=own.categories[::-1])
    np.testing.assert_array_equal(swapped.labels, own.labels[:, ::-1])
    with pytest.raises(UserError, match=r"\(2 differ: nin, nine\)"):
        read_labels(annotations, categories=(*own.categories[:-1], "nin"))
    with pytest.raises(UserError, match=r"data.categories: a category name appears twice: nine = Nine"):
        read_labels(annotations, categories=("nine", "Nine"))


def test_images_that_are_not_there_can_be_left_to_the_caller(tmp_path):
    (tmp_path / "t.csv").write_text("image,cat\ngone.jpg,1\n")
    assert len(read_labels(tmp_path / "t.csv", require_images=False)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is a folder; name the annotation file in it: a COCO .json, VOC's ImageSets"),
        (lambda path: None, "no such annotation file"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl", "a.parquet"])
def test_missing_files_and_folders(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / name)
