import json

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.preprocess import preprocess
from sdpl.train.data import LabelledImages, batches, coco_images, read_coco, require_known_labels


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
    data = read_coco(coco(tmp_path, images=(1, 2, 3)))
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
        ({"categories": ((1, "cat"), (2, "cat")), "annotations": ()}, "a category id or name stands twice"),
        ({"categories": (), "annotations": ()}, "categories: List should have at least 1 item"),
        ({"images": (1, 1), "annotations": ()}, "an image id stands twice"),
        ({"images": (), "annotations": ()}, "images: List should have at least 1 item"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_coco(coco(tmp_path, **change))


def test_lvis_style_negatives_leave_the_rest_unknown(tmp_path):
    path = coco(tmp_path, annotations=((1, 10),), categories=((10, "cat"), (20, "dog"), (30, "cow")))
    content = json.loads(path.read_text())
    content["images"][0]["neg_category_ids"] = [30]
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_coco(path).labels, [[1, 0, -1], [-1, -1, -1]])
    content["images"][0]["neg_category_ids"] = [99]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="categories that the file does not list: 99"):
        read_coco(path)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd"])
def test_file_names_stay_inside_the_folder(tmp_path, name):
    path = coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="must lie inside the images folder"):
        read_coco(path)


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
            read_coco(path)


def test_missing_images_are_counted_and_named(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are not in .*\(2\.jpg\): check the images folder"):
        read_coco(path)
    with pytest.raises(UserError, match="2 of 2 images are not in"):
        read_coco(path, tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "is not COCO format"), ('{"images": [{}]}', "is not COCO format")],
)
def test_foreign_files(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path / "a.json")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such annotation file"):
        read_coco(tmp_path / "a.json")
    with pytest.raises(UserError, match="is a folder; name the annotation file"):
        read_coco(tmp_path)


def test_a_category_without_any_known_label_is_named():
    labels = np.array([[1, 0], [-1, 0]], dtype=np.int8)
    with pytest.raises(UserError, match=r"no known label at all for 1 of 2 categories \(dog\)"):
        require_known_labels(LabelledImages((), labels, ("cat", "dog")))
    require_known_labels(LabelledImages((), np.abs(labels) * -1 - 1, ("cat", "dog")))


def test_batches_keep_order_and_content(scenes):
    data = read_coco(scenes / "annotations" / "instances_train.json").subset([5, 3, 9, 1, 0])
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
