import json

import numpy as np
import pytest

from sdpl.data.formats import read_labels
from sdpl.data.formats.coco import coco_images
from sdpl.errors import UserError


def coco(
    folder, images=(1, 2), annotations=((1, 10), (1, 10), (2, 30)), categories=((30, "dog"), (10, "cat")), **extra
):
    """A COCO file of images NN.jpg; annotations are (image id, category id)."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in images],
        "annotations": [{"image_id": i, "category_id": c} for i, c in annotations],
        "categories": [{"id": i, "name": n} for i, n in categories],
        **extra,
    }
    for i in images:
        (folder / f"{i}.jpg").touch()
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


def test_labels_and_the_categories_order(tmp_path):
    data = read_labels(coco(tmp_path, images=(1, 2, 3)))
    assert data.categories == ("cat", "dog")  # by id
    np.testing.assert_array_equal(data.labels, [[1, -1], [-1, 1], [-1, -1]])  # image 3 counts, without objects
    assert [p.name for p in data.images] == ["1.jpg", "2.jpg", "3.jpg"]


def test_images_are_found_where_coco_keeps_them(scenes, tmp_path):
    assert coco_images(scenes / "annotations" / "instances_train.json") == scenes / "train"
    assert coco_images(tmp_path / "x.json") == tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": ((1, 99),)}, "annotations name categories that the file does not list: 99"),
        ({"annotations": ((7, 10),)}, "annotations name images that the file does not list: 7"),
        ({"categories": ((1, "cat"), (2, "cat")), "annotations": ()}, "a category name appears twice: cat"),
        ({"categories": ((1, "cat"), (1, "dog")), "annotations": ()}, "a category id appears twice"),
        ({"categories": (), "annotations": ()}, "categories: List should have at least 1 item"),
        ({"images": (1, 1), "annotations": ()}, "an image id appears twice"),
        ({"images": (), "annotations": ()}, "images: List should have at least 1 item"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_labels(coco(tmp_path, **change))


def test_lvis_style_negatives_leave_the_rest_unknown(tmp_path):
    path = coco(tmp_path, annotations=((1, 10),), categories=((10, "cat"), (20, "dog"), (30, "cow")))
    content = json.loads(path.read_text())
    content["images"][0]["neg_category_ids"] = [30]
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_labels(path).labels, [[1, 0, -1], [-1, -1, -1]])
    content["images"][0]["neg_category_ids"] = [99]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="categories that the file does not list: 99"):
        read_labels(path)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd"])
def test_file_names_stay_inside_the_folder(tmp_path, name):
    path = coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="must lie inside the images folder"):
        read_labels(path)


def test_wrong_types_are_named(tmp_path):
    path = coco(tmp_path)
    wrong = {
        ("images", "id"): [1],
        ("images", "file_name"): 5,
        ("annotations", "category_id"): None,
        ("categories", "id"): {},
    }
    for (key, field), value in wrong.items():
        content = json.loads(coco(tmp_path).read_text())
        content[key][0][field] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"is not COCO format: {key}.0.{field}: "):
            read_labels(path)


def test_missing_images_are_counted_and_named(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are not in .*\(2\.jpg\): check the images folder"):
        read_labels(path)
    with pytest.raises(UserError, match="2 of 2 images are not in"):
        read_labels(path, tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "is not COCO format"), ('{"images": [{}]}', "is not COCO format")],
)
def test_foreign_files(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "a.json")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such annotation file"):
        read_labels(tmp_path / "a.json")
    with pytest.raises(UserError, match="is a folder; name the annotation file"):
        read_labels(tmp_path)
