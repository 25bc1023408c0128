"""Label files and configurations: bounded, and plain."""

import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from sdpl.data.formats import bounds, read_labels
from sdpl.errors import UserError, nearest
from sdpl.train.config_files import read_config
from sdpl.train.plain_yaml import NotPlainError, parse_plain_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "its aliases stand for more than 200,000 values"),
        ("a: &a [*a]", "a value contains itself"),
        ("[" * 30 + "]" * 30, "values lie more than 20 deep"),
        ("a: 2024-01-01", r"a value of type 'timestamp' is not plain .*line 1, column 4.*put it in quotes"),
        ("a: 2024-99-99", "timestamp"),
        ("a: !!python/object/apply:os.system [ls]", "is not plain"),
        ("a: !x 1", "is not plain"),
        ("a: !!binary aGk=", "is not plain"),
        ("a: !!set {x}", "is not plain"),
        ("1: a", "the key '1' is not text"),
        ("? [a]\n: b", "the key a list or mapping is not text"),
        ("a: 1\na: 2", "the key 'a' appears twice"),
        ("a: " + "9" * 5000, "limit"),
        ("a: 'x", "while scanning"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(text, message):
    with pytest.raises(NotPlainError, match=message):
        parse_plain_yaml(text)


def test_aliases_of_plain_values_are_fine():
    text = "base: &b {x: 1}\nall:\n- <<: *b\n  y: null\n- *b"
    assert parse_plain_yaml(text) == {"base": {"x": 1}, "all": [{"x": 1, "y": None}, {"x": 1}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"cache": "a\0b"}}, "the path has a null byte"),
        ({"data": {"train": {"annotations": "a" * 300}}}, "is longer than a path can be"),
        ({"model": {"weights": "a" * 300}}, "is longer than a path can be"),
        ({"model": {"joint_dim": 10**9}}, "less than or equal to 65536"),
        ({"model": {"backbone": "a" * 5000}}, "at most 1000 characters"),
        ({"train": {"batch_size": 10**12}}, "less than or equal to 65536"),
        ({"data": {"workers": 10**6}}, "less than or equal to 1024"),
    ],
)
def test_values_that_cannot_work_are_refused_when_they_are_read(config, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config(config(**changes))
    assert len(str(caught.value)) <= 390


def test_a_configuration_that_is_a_pipe_or_huge_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="is a device or a pipe"):
        read_config(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="more than 4 MB"):
        (tmp_path / "x.yaml").write_bytes(b" " * (5 << 20))
        read_config(tmp_path / "x.yaml")


def test_a_table_of_many_columns_is_read(tmp_path):
    """Each name is looked up, not compared with every other; that would keep this test busy for long."""
    names = [f"c{i}" for i in range(20_000)]
    (tmp_path / "x.csv").write_text(
        ",".join(["image", *names]) + "\n" + ",".join(["a.jpg", *["1"] * len(names)]) + "\n"
    )
    data = read_labels(tmp_path / "x.csv", require_images=False, categories=tuple(reversed(names)))
    assert len(data.categories) == 20_000


def test_sizes_are_bounded_before_memory_is_taken(tmp_path, monkeypatch):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(20)],
        "annotations": [],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(20)],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    monkeypatch.setattr(bounds, "MAX_LABELS", 399)
    with pytest.raises(UserError, match="20 images x 20 categories are more than 399 labels"):
        read_labels(tmp_path / "x.json", require_images=False)
    monkeypatch.setattr(bounds, "MAX_CATEGORIES", 19)
    with pytest.raises(UserError, match="has 20 categories, at most 19"):
        read_labels(tmp_path / "x.json", require_images=False)
    monkeypatch.setattr(bounds, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="more than 10; divide it"):
        read_labels(tmp_path / "x.json", require_images=False)


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.parquet"])
def test_a_label_file_that_is_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a device or a pipe"):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a\0.jpg", "cat": 1}], "names no image"),
        ([{"image": "a" * 300, "cat": 1}], "image 1: its file name .* is longer than a path can be"),
        ([{"image": "\ud800.jpg", "cat": 1}], "half a character"),
        ([{"image": "a.jpg", "c\u0007": 1}], "has a control character"),
        ([{"image": "a.jpg", "c" * 10_000: 1}], "a name has 10,000 characters"),
        ([{"image": "a.jpg", "cat": 10**400}], r"cat = 1000.* blank \(unknown\)"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path, rows, message):
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "x.jsonl", require_images=False)


def test_columns_of_other_types_are_refused_only_where_they_are_used(tmp_path):
    table = pyarrow.table({"image": ["a.jpg"], "cat": [1], "picture": [{"bytes": b"x"}]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="picture = 'a struct<bytes: binary>': expected 1"):
        read_labels(tmp_path / "x.parquet", require_images=False)
    assert read_labels(tmp_path / "x.parquet", require_images=False, categories=("cat",)).labels.tolist() == [[1]]


def test_hints_are_sought_among_a_bounded_number_of_names():
    assert nearest("catt", ["cat", "dog"]) == "did you mean 'cat'?"
    assert nearest("x" * 100_000, [f"{i}" * 1000 for i in range(20_000)]).startswith("known: ")


@pytest.mark.parametrize("name", ["***", "a" * 200])
def test_a_sweep_cannot_name_a_folder_outside_of_its_own(sdpl, config, tmp_path, name):
    base = config()
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(
            {
                "base": str(base),
                "test": {"annotations": "x.json"},
                "methods": {name: {}},
                "proportions": [0.5],
            }
        )
    )
    result = sdpl("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "a method's name is a folder's" in result.stderr
    (tmp_path / "sweep.yaml").write_text((tmp_path / "sweep.yaml").read_text()[:-1] + ', "figures": {"../x": []}}')
    result = sdpl("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out")
    assert "figures are files of these names" in result.stderr
