import json
import subprocess
import sys
from pathlib import Path

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


def write(folder, text):
    path = folder / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


WHOLE = '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        (WHOLE[:-20], "is not JSON"),
        (WHOLE + "]", "is not JSON"),
        (WHOLE.replace("[]", '[{"segmentation": ' + 100_000 * "["), "is not JSON"),
        (WHOLE[:-1] + ', "more": ' + 100_000 * "[" + "}", "is not JSON"),
        (WHOLE.replace("1.jpg", "\\ud800"), "is not JSON"),
        (WHOLE.encode().replace(b"1.jpg", b"\xff.jpg"), "is not JSON"),
        (WHOLE.replace("[]", '[{"area": NaN, ]'), "is not JSON"),
        (WHOLE.replace('"id": 1, "name"', '"id": NaN, "name"'), r"not COCO format: categories\.0\.id: "),
        (WHOLE.replace('"1.jpg"', "Infinity"), r"not COCO format: images\.0\.file_name: "),
        (WHOLE.replace('"annotations": [], ', ""), "not COCO format: the file: .*annotations"),
        (WHOLE.replace("[]", "null"), "not COCO format: annotations: "),
        (WHOLE.replace("[]", '[{"image_id": 1, "category_id": 1.5}]'), r"not COCO format: annotations\.0\.category_id"),
        (WHOLE.replace("[]", '[{"image_id": 1}]'), r"not COCO format: annotations\.0: .*category_id"),
        (WHOLE[:-1] + ', "categories": []}', "categories: List should have at least 1 item"),  # the last one counts
    ],
)
def test_what_is_no_coco_file_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_labels(write(tmp_path, text), require_images=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_labels_do_not_need_may_be_anything_and_ids_any_whole_number(tmp_path):
    text = r"""{"categories": [{"id": "7", "name": "cat"}, {"id": 3e0, "name": "dog", "more": NaN}], "x": -Infinity,
        "annotations": [{"category_id": 7.0, "image_id": 99999999999999999999999, "area": NaN,
                         "segmentation": [[1, Infinity], {"a": [[[]]]}]}],
        "images": [{"file_name": "a, NaN, \"Infinity\".jpg", "id": 99999999999999999999999},
                   {"file_name": "b.jpg", "id": -1}]}"""
    data = read_labels(write(tmp_path, text), require_images=False)
    assert [path.name for path in data.images] == ['a, NaN, "Infinity".jpg', "b.jpg"]
    assert data.categories == ("dog", "cat")
    np.testing.assert_array_equal(data.labels, [[-1, 1], [-1, -1]])


PEAK = """
import sys
from sdpl.data.formats import read_labels
import sdpl.data.formats.coco
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]) * 1024
before = peak()
assert (read_labels(sys.argv[1], require_images=False).labels == 1).all()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says the peak of a process's memory there")
def test_what_labels_do_not_need_takes_no_memory(tmp_path):
    polygon = str([[float(x) for x in range(200)]])
    annotation = f'{{"image_id": 1, "category_id": 1, "segmentation": {polygon}}}'
    path = write(tmp_path, WHOLE.replace("[]", f"[{', '.join(40_000 * [annotation])}]"))
    size = path.stat().st_size
    assert size > 40e6
    result = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1.3 * size  # as bytes, and a little for each annotation


def test_some_of_a_file_s_categories_in_another_order(tmp_path):
    path = coco(tmp_path, annotations=((1, 10), (2, 30)), categories=((10, "cat"), (20, "cow"), (30, "dog")))
    data = read_labels(path, categories=("dog", "cat"))
    assert data.categories == ("dog", "cat")
    np.testing.assert_array_equal(data.labels, [[-1, 1], [1, -1]])
    with pytest.raises(UserError, match="its categories are not those of the model or configuration"):
        read_labels(path, categories=("dog", "horse"))
