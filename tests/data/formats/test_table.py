import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sdpl.data.formats import read_labels
from sdpl.data.formats.table import write_table
from sdpl.errors import UserError

# The same three photos in every form: cat present and dog absent; dog present; nothing known.
LABELS = np.array([[1, -1], [0, 1], [0, 0]], dtype=np.int8)
FORMS = {
    "columns.csv": "image,cat,dog\na.jpg,1,-1\nb.jpg,,1\nc.jpg,0,\n",
    "semicolons.csv": "\ufeffpath;cat;dog\r\na.jpg; 1;-1\r\n\r\nb.jpg;;1.0\r\nc.jpg;;\r\n",
    "tabs.csv": "file_name\tcat\tdog\na.jpg\t1\t-1\nb.jpg\t0\t+1\nc.jpg\t0\t0\n",
    "lists.csv": "image,positives,negatives,annotator\na.jpg,cat,dog,eve\nb.jpg, dog ,,bob\nc.jpg,,,\n",
    "columns.jsonl": '{"image": "a.jpg", "cat": 1, "dog": -1}\n\n{"image": "b.jpg", "dog": 1.0}\n{"image": "c.jpg"}\n',
    "lists.jsonl": '{"image": "a.jpg", "positives": ["cat"], "negatives": ["dog"]}\n'
    '{"image": "b.jpg", "positives": ["dog"]}\n{"image": "c.jpg", "negatives": null}\n',
    "columns.parquet": {"image": ["a.jpg", "b.jpg", "c.jpg"], "cat": [1.0, None, float("nan")], "dog": [-1, 1, 0]},
    "lists.parquet": {
        "image": ["a.jpg", "b.jpg", "c.jpg"],
        "positives": [["cat"], ["dog"], []],
        "negatives": [["dog"], None, None],
    },
}


def table(folder, name, content):
    for photo in "abc":
        (folder / f"{photo}.jpg").touch()
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(content), path)
    else:
        path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_labels(tmp_path, name):
    data = read_labels(table(tmp_path, name, FORMS[name]))
    assert data.categories == ("cat", "dog")
    assert data.images == tuple(tmp_path / f"{photo}.jpg" for photo in "abc")
    assert data.labels.dtype == np.int8
    np.testing.assert_array_equal(data.labels, LABELS)


@pytest.mark.parametrize("name", FORMS)
def test_the_order_of_the_categories_can_be_given(tmp_path, name):
    data = read_labels(table(tmp_path, name, FORMS[name]), categories=("dog", "cat"))
    assert data.categories == ("dog", "cat")
    np.testing.assert_array_equal(data.labels, LABELS[:, ::-1])


def test_lists_may_leave_out_categories_that_are_given(tmp_path):
    data = read_labels(table(tmp_path, "t.csv", FORMS["lists.csv"]), categories=("cow", "cat", "dog"))
    np.testing.assert_array_equal(data.labels[:, 0], 0)


def test_given_categories_say_which_columns_are_labels(tmp_path):
    path = table(tmp_path, "t.csv", "image,annotator,cat\na.jpg,eve,1\n")
    assert read_labels(path, categories=("cat",)).labels.tolist() == [[1]]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    labels = np.random.RandomState(0).randint(-1, 2, (3, 4)).astype(np.int8)
    names, categories = ["a.jpg", "b.jpg", "c, d.jpg"], ("x", "fire hydrant", "a", "né")
    for name in names:
        (tmp_path / name).touch()
    path = tmp_path / f"t{suffix}"
    write_table(path, suffix[1:], names, labels, categories)
    data = read_labels(path)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.categories == categories
    assert [image.name for image in data.images] == names


@pytest.mark.parametrize("category", ["image", "positives"])
def test_a_category_that_the_table_cannot_hold_is_refused(tmp_path, category):
    with pytest.raises(UserError, match=f"a table cannot have a category called '{category}'"):
        write_table(tmp_path / "t.csv", "csv", ["a.jpg"], np.ones((1, 1), np.int8), (category,))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,cat\na.jpg,2\n", r"t.csv:2: cat = '2': expected 1 \(present\), -1 \(absent\), 0 or blank"),
        ("t.csv", "image,cat\na.jpg,yes\n", r"t.csv:2: cat = 'yes': expected 1.*data.categories"),
        ("t.csv", "image,cat\na.jpg,nan\n", r"t.csv:2: cat = 'nan': expected 1"),
        ("t.jsonl", '{"image": "a.jpg", "cat": true}', r"t.jsonl:1: cat = True: expected 1"),
        ("t.jsonl", '{"image": "a.jpg", "cat": [1]}', r"t.jsonl:1: cat = \[1\]: expected 1"),
        ("t.parquet", {"image": ["a.jpg", "b.jpg"], "cat": [1, 3]}, r"t.parquet, row 2: cat = 3: expected 1"),
        ("t.csv", "photo,cat\na.jpg,1\n", r"has no column 'image' or .*it has photo, cat"),
        ("t.csv", "", "has no column 'image' or .*; the file is empty"),
        ("t.csv", "image,cat\n", "t.csv: has no rows"),
        ("t.csv", "image\na.jpg\n", "has no category: neither columns beside the image"),
        ("t.csv", "image,cat\n ,1\n", "t.csv:2: names no image"),
        ("t.csv", "image,cat,cat\na.jpg,1,1\n", "a column appears twice: cat"),
        ("t.csv", ",image,cat\n0,a.jpg,1\n", r"column 1 has no name \(pandas: to_csv\(..., index=False\)\)"),
        ("t.csv", "image,cat\na.jpg,1,1\n", "t.csv:2: has 3 cells, the header 2"),
        ("t.csv", "image,Cat,cat\na.jpg,1,1\n", "a category name appears twice: Cat = cat"),
        ("t.csv", "image,fire hydrant,fire_hydrant\na.jpg,1,1\n", "appears twice: fire hydrant = fire_hydrant"),
        ("t.csv", 'image,cat\n"a.jpg,1\n', r"t.csv:2: is not CSV \(unexpected end of data\)"),
        ("t.csv", "image,cat\na.jpg,1\n./a.jpg,1\n", r"an image appears twice: ./a.jpg"),
        ("t.csv", "image,cat\n../a.jpg,1\n", r"must lie inside the images folder .*: ../a.jpg"),
        ("t.csv", "image,cat\n/etc/passwd,1\n", r"must lie inside the images folder .*: /etc/passwd"),
        ("t.csv", "image,cat\nd.jpg,1\n", r"1 of 1 images are not in .* \(d.jpg\): check the images folder"),
        ("t.csv", "image,positives,negatives\na.jpg,cat|dog,cat\n", "t.csv:2: 'cat' appears in both lists"),
        (
            "t.jsonl",
            '{"image": "a.jpg", "positives": 3}',
            r"t.jsonl:1: positives = 3: expected a list",
        ),
        ("t.jsonl", '{"image": "a.jpg", "positives": [3]}', r"positives = \[3\]: expected a list of category names"),
        ("t.jsonl", '{"image": "a.jpg", "cat": 1}\n{"image": ', "t.jsonl:2: is not JSON"),
        ("t.jsonl", "[1]", "t.jsonl:1: expected an object such as"),
        ("t.jsonl", "[" * 5000, "t.jsonl:1: is not JSON"),
        ("t.jsonl", '{"image": 5, "cat": 1}', "t.jsonl:1: names no image"),
        ("t.jsonl", '{"image": "a\\u0000.jpg", "cat": 1}', "t.jsonl:1: names no image"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_labels(table(tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,cat,dgo\na.jpg,1,1\n", r"has no column for 1 category: dog; did you mean 'dgo'\?"),
        ("t.csv", "image,dgo\na.jpg,1\n", r"has no column for 2 categories: cat, dog; it has dgo, image"),
        ("t.csv", "image,positives\na.jpg,cat|dgo\n", r"t.csv:2: dgo: no category of the model .*did you mean 'dog'\?"),
    ],
)
def test_other_categories_than_the_given_are_named(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_labels(table(tmp_path, name, content), categories=("cat", "dog"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_foreign_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(b"image,\xff\xfe\n")
    with pytest.raises(UserError, match=f"{name}: is not (UTF-8 text|Parquet)"):
        read_labels(tmp_path / name)


def test_paths_are_checked_in_the_working_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, message in (("../a.jpg", "must lie inside"), (str(tmp_path / "photos" / "b.jpg"), "images are not in")):
        (tmp_path / "photos" / "t.csv").write_text(f"image,cat\n{name},1\n")
        monkeypatch.chdir(tmp_path / "photos")
        with pytest.raises(UserError, match=message):
            read_labels("t.csv")


def test_an_absolute_path_inside_the_images_folder_is_fine(tmp_path):
    path = table(tmp_path, "t.jsonl", json.dumps({"image": str(tmp_path / "a.jpg"), "cat": 1}))
    assert read_labels(path).images == (tmp_path / "a.jpg",)


def test_numbers_mean_what_the_user_says(tmp_path):
    """CheXpert's: 1 present, 0 absent, -1 uncertain, blank not mentioned."""
    (tmp_path / "a.csv").write_text("image,cat,dog\na.jpg,1,0\nb.jpg,-1,\n")
    meaning = {1: 1, 0: -1, -1: 0}
    data = read_labels(tmp_path / "a.csv", require_images=False, values=meaning)
    assert data.labels.tolist() == [[1, -1], [0, 0]]
    with pytest.raises(UserError, match=r"dog = '0': expected 1 \(present\), 2 \(absent\) or blank .* in data\.values"):
        read_labels(tmp_path / "a.csv", require_images=False, values={1: 1, 2: -1})
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.values is for tables; COCO format"):
        read_labels(tmp_path / "c.json", values=meaning)
