"""Tables, word vectors and weights that would cost too much: refused before it is paid."""

import json
import os
import struct
import zipfile

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from sdpl import parquet as limits
from sdpl.data.formats import read_labels
from sdpl.errors import UserError
from sdpl.scale import readers
from sdpl.scale.plan import Shard
from sdpl.train.config import ModelConfig
from sdpl.train.model import weights_bounds, word_vectors
from sdpl.train.model.clip import clip_config
from sdpl.train.model.weights import read_weights


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


def npy_of(shape, dtype="<f4"):
    """The bytes of an .npy that announces an array and holds nothing of it."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_of("(10**6,)"), "cannot be read"),
        (npy_of((10**12, 300)), r"at most 4,000,000 vectors of 4,096 numbers .*1000000000000, 300"),
        (npy_of((2, 10**9)), "at most 4,000,000 vectors"),
        (npy_of((2, 300), "|O"), "got object"),
        (npy_of((2, 300), "<U4000000"), "cannot be read|expected one vector"),
        (npy_of((2, 3, 4)), "expected names"),
        (npy_of((2, 300)), "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_of_word_vectors_are_bounded_by_their_header(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    (tmp_path / "x.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        word_vectors.word_vectors(str(tmp_path / "x.npy"), ["cat"])
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        np.save(archive.open("names.npy", "w"), np.array(["cat", "dog"]))
        archive.writestr("vectors.npy", content)
    with pytest.raises(UserError, match="needs the arrays 'names' and 'vectors'"):
        word_vectors.word_vectors(str(tmp_path / "x.npz"), ["cat"])


def test_word_vectors_that_would_unpack_to_much_are_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", names=np.array(["cat"]), vectors=np.zeros((1, 4000), np.float32))
    monkeypatch.setattr(word_vectors, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match=r"vectors.npy has 16,128 bytes, more than 10,000; save it as .npy"):
        word_vectors.word_vectors(str(tmp_path / "x.npz"), ["cat"])


@pytest.mark.parametrize("text", ["cat" + " 1" * 4097, "cat 1 2\n" + "a" * (1 << 20), "a" * (3 << 20)])
def test_lines_of_word_vectors_are_bounded(tmp_path, text):
    (tmp_path / "x.glove").write_text(text)
    with pytest.raises(UserError, match="no word vectors"):
        word_vectors.word_vectors(str(tmp_path / "x.glove"), ["dog"])


def archive_of(path, compression=zipfile.ZIP_DEFLATED, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/constants.pkl", b"")
        for name, content in entries.items():
            archive.writestr(f"x/code/{name}.py", content)
    return path


def test_code_in_weights_is_bounded(tmp_path):
    path = archive_of(tmp_path / "x.pt", a=b" " * (9 << 20), b=b" " * (9 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"cannot be loaded as weights .its code has more than 16 MB"):
        read_weights(path)


def test_archives_of_weights_that_would_unpack_to_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_bounds, "MAX_UNPACKED", 10_000)
    with pytest.raises(UserError, match="its 2 entries would unpack to 10,001 bytes"):
        read_weights(archive_of(tmp_path / "x.pt", a=b" " * 10_001))
    data = bytearray(archive_of(tmp_path / "x.pt", zipfile.ZIP_STORED, a=b" " * 9).read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", 1 << 31)  # the size that the directory announces
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match="would unpack to 2,147,483,648 bytes"):
        read_weights(tmp_path / "x.pt")


def test_weights_that_are_larger_than_their_file_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"a .1000000, 1000000. is larger than what the file holds"):
        read_weights(tmp_path / "x.pt")
    one = torch.zeros(10_000)
    torch.save({str(i): one[i:] for i in range(100)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is larger than what the file holds"):
        read_weights(tmp_path / "x.pt")
    torch.save({"a": one, "b": one}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt").state.keys() == {"a", "b"}


def test_the_header_of_safetensors_is_bounded(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(UserError, match="its header announces 1,099,511,627,776 bytes"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_are_a_pipe_are_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"x.{suffix}")
    with pytest.raises(UserError, match="no regular file"):
        read_weights(tmp_path / f"x.{suffix}")


def test_the_definition_of_a_backbone_is_bounded(tmp_path):
    path = tmp_path / "x.json"
    config = ModelConfig(backbone="x", backbone_config=str(path))
    os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        clip_config(config)
    path.unlink()
    path.write_text(json.dumps({"embed_dim": 1, "vision_cfg": {}, "text_cfg": {"x": "a" * (1 << 20)}}))
    with pytest.raises(UserError, match="has more than 1 MB"):
        clip_config(config)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not an open_clip model config"):
        clip_config(config)


def test_a_pickle_that_announces_more_than_it_holds_is_refused_before_native_code_reads_it(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02X" + struct.pack("<I", 1 << 31) + b"a.")  # a text of 2 GB
    with pytest.raises(UserError, match=r"cannot be loaded as weights .expected 2147483648 bytes"):
        read_weights(path)


def test_a_damaged_state_dict_of_any_kind_is_one_line(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    for pickle in (b"\x80\x020.", b"\x80\x02h\x00.", b"\x80\x02R."):  # nothing to pop, to recall, to call
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, pickle if name.endswith(".pkl") else content)
        with pytest.raises(UserError, match="cannot be loaded as weights"):
            read_weights(tmp_path / "x.pt")


def test_names_of_word_vectors_that_are_no_characters_are_refused(tmp_path):
    names = np.array([0x110000, 0xFFFFFFFF], "<u4").view("<U1")
    np.savez(tmp_path / "x.npz", names=names, vectors=np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="the names hold numbers that are no characters"):
        word_vectors.word_vectors(str(tmp_path / "x.npz"), ["cat"])


def test_a_header_that_is_no_python_literal_is_refused(tmp_path):
    whole = npy_of((2, 300))
    (tmp_path / "x.txt").write_text("cat\ndog\n")
    for piece in (b"{(", b"(" * 118, b"'" * 3):
        (tmp_path / "x.npy").write_bytes(whole[:10] + piece + whole[10 + len(piece) :])
        with pytest.raises(UserError, match="cannot be read"):
            word_vectors.word_vectors(str(tmp_path / "x.npy"), ["cat"])
