"""Damaged Parquet files, word vectors and encoder weights: one line of ours, or all is well."""

import io
import json
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import safetensors.torch
import torch
from pyarrow import parquet

from sdpl.data.formats import read_labels
from sdpl.errors import UserError
from sdpl.scale.plan import Shard
from sdpl.scale.readers import Columns, read_shard
from sdpl.train.model.weights import read_weights
from sdpl.train.model.word_vectors import word_vectors

from .hostile import HOSTILE, changed
from .inputs import TENSORS, Attack
from .mutate import mutated

NAMES = ("cat", "fire hydrant", "été")
WIDTH = 8
PIECES = [b"PAR1", b"PK\3\4", b"\x93NUMPY\1\0", b"\0" * 64, b"\xff" * 16]
COLUMNS: tuple[Any, ...] = (
    *([1, 0, -1, None], [1.5, 2.0, float("nan"), None], ["1", "", "a\0b", None], [b"x", b"", b"\xff\xd8\xff", None]),
    *([["cat"], [], [None], None], [["cat", "cat"], ["x"] * 500, ["\x1b[31m"], None], [{"a": 1}, {}, None, None]),
    *([True, False, None, None], [None] * 4, [[[1]], [], None, [[]]], [np.datetime64("2024-01-01")] * 4),
    ["../a.jpg", "/etc/passwd", "a" * 5000, "b.jpg"],
)


class Stored:
    """Whole files of every kind, and a folder to damage them in."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        vectors = np.random.default_rng(0).normal(size=(len(NAMES), WIDTH)).astype(np.float32)
        glove = "\n".join(" ".join([word, *map(str, row)]) for word, row in zip("abc", vectors, strict=True))
        self.tensors = {"visual.proj": torch.zeros(4, 3), "logit_scale": torch.ones(()), "ids": torch.arange(6)}
        self.files = {
            "labels.parquet": self._parquet({"image": ["a.jpg", "b.jpg"], "cat": [1, -1], "positives": [["cat"], []]}),
            "images.parquet": self._parquet({"key": ["a", "b"], "jpg": [b"\xff\xd8\xff", b"x" * 300]}),
            "x.npz": self._npz(vectors),
            "x.npy": self._npy(vectors),
            "x.glove": glove.encode(),
            "x.safetensors": safetensors.torch.save(self.tensors),
            "x.pt": self._saved(self.tensors),
            "jit.pt": self._torchscript(),
        }
        (self.folder / "x.txt").write_text("\n".join(NAMES), encoding="utf-8")

    def _parquet(self, columns: dict[str, list[Any]]) -> bytes:
        parquet.write_table(pyarrow.table(columns), self.folder / "made")
        return (self.folder / "made").read_bytes()

    def _npz(self, vectors: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, names=np.array(NAMES), vectors=vectors)
        return buffer.getvalue()

    def _npy(self, vectors: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        return buffer.getvalue()

    def _saved(self, content: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def _torchscript(self) -> bytes:
        class Scaled(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.gelu(x * self.weight)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is no longer developed; the published files stay
            torch.jit.trace(Scaled(), torch.ones(3)).save(str(self.folder / "made"))
        return (self.folder / "made").read_bytes()


def case(stored: Stored, random: np.random.Generator) -> Attack:
    """A file of some kind: its bytes changed, or what it holds, in a container that is whole."""
    name = sorted(stored.files)[int(random.integers(len(stored.files)))]
    content = stored.files[name]
    inside = random.random() < 0.6
    if inside and name.endswith(".parquet"):
        content = _other_columns(stored, name, random)
    elif inside and name == "x.safetensors":
        content = _other_header(content, random)
    elif inside and name == "x.pt" and random.random() < 0.5:
        content = stored._saved(changed(stored.tensors, random, TENSORS))
    elif inside and zipfile.is_zipfile(io.BytesIO(content)):
        content = _other_entry(content, random)
    else:
        content = mutated(content, PIECES, random)
    path = stored.folder / name
    path.write_bytes(content)
    return lambda: READ[name](path)


def _other_columns(stored: Stored, name: str, random: np.random.Generator) -> bytes:
    usual = ["image", "positives", "negatives", "cat"] if name == "labels.parquet" else ["jpg", "key", "path", "id"]
    columns = {}
    for column in usual:
        values = list(COLUMNS[int(random.integers(len(COLUMNS)))])
        if random.random() < 0.2:
            values[int(random.integers(4))] = HOSTILE[int(random.integers(len(HOSTILE)))]
        array = pyarrow.array(values)
        if random.random() < 0.3:
            array = array.dictionary_encode()
        if random.random() < 0.8:
            columns[column] = array
    return stored._parquet(columns)


def _other_header(content: bytes, random: np.random.Generator) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), random)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _other_entry(content: bytes, random: np.random.Generator) -> bytes:
    """An archive with one entry damaged, doubled or taken out, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at, kind = int(random.integers(len(entries))), int(random.integers(4))
    entry, data = entries[at]
    if kind == 0:
        del entries[at]
    else:
        entries[at] = (entry, mutated(data, PIECES, random) if kind < 3 else data * 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if random.random() < 0.5 else zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return buffer.getvalue()


def _images(path: Path) -> None:
    for entry in read_shard(Shard(0, "parquet", (str(path),), 0), Columns()):
        if isinstance(entry.image, UserError):
            raise entry.image


def _vectors(path: Path) -> None:
    word_vectors(str(path), ["a", "b"] if path.suffix == ".glove" else NAMES)


READ: dict[str, Any] = {
    "labels.parquet": lambda path: read_labels(path, require_images=False),
    "images.parquet": _images,
    "x.npz": _vectors,
    "x.npy": _vectors,
    "x.glove": _vectors,
    "x.safetensors": read_weights,
    "x.pt": read_weights,
    "jit.pt": read_weights,
}
