"""Tables, word vectors and weights that would cost too much: refused before it is paid."""

import os

import pyarrow
import pytest
from pyarrow import parquet

from sdpl import parquet as limits
from sdpl.data.formats import read_labels
from sdpl.errors import UserError
from sdpl.scale import readers
from sdpl.scale.plan import Shard


def shard_of(path):
    return list(readers.read_shard(Shard(0, "parquet", (str(path),), 0), readers.Columns()))


def test_a_parquet_table_that_announces_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"image": [f"{i}.jpg" for i in range(20)], "cat": [1] * 20}), path)
    with monkeypatch.context() as patched:
        patched.setattr(limits, "MAX_ROWS", 19)
        with pytest.raises(UserError, match="announces 20 rows, at most 19 are read"):
            read_labels(path, require_images=False)
        with pytest.raises(UserError, match="announces 20 rows, at most 19 are read"):
            shard_of(path)
    with monkeypatch.context() as patched:
        patched.setattr("sdpl.data.formats.table.MAX_BYTES", 100)
        with pytest.raises(UserError, match="decompressed bytes, more than 100; divide it"):
            read_labels(path, require_images=False)
    with monkeypatch.context() as patched:
        patched.setattr("sdpl.data.formats.table.MAX_CELL", 1)
        with pytest.raises(UserError, match=r"row group 0 announces .* bytes for 20 rows"):
            read_labels(path, require_images=False)


def test_one_long_text_in_every_row_does_not_become_many(tmp_path):
    """A file of some kilobytes that would be 20 GB of text."""
    path = tmp_path / "x.parquet"
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * (20 << 20)])
    parquet.write_table(pyarrow.table({"image": text, "cat": [1] * 1000}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="a cell of column 'image' has more than 16 MB or 100000 names"):
        read_labels(path, require_images=False)


def test_texts_of_every_kind_are_read_as_they_are(tmp_path):
    path = tmp_path / "x.parquet"
    names = [["cat", "dog"], [], None, ["cat"]]
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        image = pyarrow.array(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], pyarrow.string()).cast(kind)
        parquet.write_table(pyarrow.table({"image": image, "positives": names}), path, row_group_size=3)
        data = read_labels(path, require_images=False)
        assert data.labels.tolist() == [[1, 1], [0, 0], [0, 0], [1, 0]]


def test_a_list_of_many_names_in_one_row_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"image": ["a.jpg"], "positives": [["cat"] * 100_001]}), path)
    with pytest.raises(UserError, match="a cell of column 'positives' has more than"):
        read_labels(path, require_images=False)


def test_images_in_parquet_are_bounded_one_by_one(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    monkeypatch.setattr(readers, "MAX_BYTES", 10_000)
    parquet.write_table(pyarrow.table({"jpg": [b"small", b"a" * 10_001, b"small"]}), path)
    small, large, last = shard_of(path)
    assert small.image == last.image == b"small"
    assert isinstance(large.image, UserError)
    parquet.write_table(pyarrow.table({"jpg": [os.urandom(20_000)]}), path)
    with pytest.raises(UserError, match=r"row group 0 announces .* bytes for 1 rows"):
        shard_of(path)
