"""From inputs to shards: what is read in which order, cut so that a shard's content depends on the inputs alone."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdpl.errors import UserError, listed
from sdpl.preprocess import SUFFIXES
from sdpl.scale.storage import Store, is_url, list_url
from sdpl.sources import expand
from sdpl.text import as_utf8

TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet",)
# location: in the bytes of the file system, which need not be UTF-8
SCHEMA = pa.schema({"shard": pa.int32(), "kind": pa.string(), "location": pa.binary(), "size": pa.int64()})
OWN = re.compile(r"(shard-\d{6,}|inputs)\.parquet|job\.json")  # what a job writes into its folder
CHUNK = 1 << 16  # inputs that are plain Python objects at a time while listing


@dataclass(frozen=True)
class Shard:
    """What one output file is made of. kind: "files" (images at `locations`), "tar" or "parquet" (one location).
    size: bytes of the input, as far as they are known."""

    index: int
    kind: str
    locations: tuple[str, ...]
    size: int

    @property
    def name(self) -> str:
        """The output file."""
        return output_name(self.index)


def output_name(shard: int) -> str:
    """The file that a shard's scores are written to."""
    return f"shard-{shard:06d}.parquet"


class Plan:
    """The shards of a job, over a table of its inputs (`SCHEMA`), sorted by shard."""

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()
        ids = self.table["shard"].to_numpy()
        self._starts = np.searchsorted(ids, np.arange(len(self) + 1))

    def __len__(self) -> int:
        return int(self.table["shard"][-1].as_py()) + 1 if self.table.num_rows else 0

    def shard(self, index: int) -> Shard:
        start, end = self._starts[index : index + 2]
        rows = self.table.slice(start, end - start)
        size = pc.sum(rows["size"]).as_py() or 0
        return Shard(index, rows["kind"][0].as_py(), tuple(map(_from_bytes, rows["location"].to_pylist())), size)

    def written(self) -> pa.Table:
        """The table as it is kept on disk: locations as text, what is not UTF-8 in them as \\xff."""
        column = self.table["location"]
        try:
            text = column.cast(pa.string())
        except pa.ArrowInvalid:
            text = pa.chunked_array([[as_utf8(_from_bytes(location)) for location in column.to_pylist()]], pa.string())
        return self.table.set_column(self.table.schema.get_field_index("location"), "location", text)

    def sizes(self) -> np.ndarray:
        """Known bytes of each shard's input."""
        sizes = self.table["size"].fill_null(0).to_numpy()
        return np.add.reduceat(sizes, self._starts[:-1]) if len(self) else sizes


def kind_of(location: str) -> str:
    lower = location.lower()
    return "tar" if lower.endswith(TARS) else "parquet" if lower.endswith(PARQUET) else "files"


def make_plan(
    inputs: Iterable[str], recursive: bool, shard_size: int, store: Store | None = None, is_new: bool = True
) -> tuple[Plan, int]:
    """The shards of the inputs, and how many inputs were named more than once: each is scored once.

    A tar or Parquet file is a shard; images in files of their own go `shard_size` to a shard. Raises UserError when an
    input cannot be listed or there are none, and for a new job (`is_new`) when a file that is named is not there, or
    none of those in the lists: a job that goes on may have lost inputs that are finished. store: the job's folder,
    whose own files are no inputs.
    """
    table, repeated = _without_repeats(_table(_listed_inputs(inputs, recursive, store, is_new)))
    if table.num_rows == 0:
        raise UserError("no inputs: the lists or folders hold none.")
    if is_new:
        _require_any(table)
    kinds = np.asarray(table["kind"])
    single = kinds == "files"
    of_files = (np.cumsum(single) - 1) // shard_size
    first_whole = int(of_files[-1]) + 1 if single.any() else 0
    ids = np.where(single, of_files, first_whole + np.cumsum(~single) - 1).astype(np.int32)
    table = table.set_column(0, "shard", pa.array(ids))
    return Plan(table.take(pa.array(np.argsort(ids, kind="stable")))), repeated


def other_inputs(old: pa.Table, new: pa.Table) -> list[str]:
    """Which inputs are new or gone, or that they come in another order, in words; of tables as `Plan.written`."""
    if old["location"].combine_chunks() == new["location"].combine_chunks():
        return []
    before, after = (set(table["location"].to_pylist()) for table in (old, new))
    named = (("new", sorted(after - before)), ("gone", sorted(before - after)))
    found = [f"{len(names)} inputs are {word} ({listed(names, most=3)})" for word, names in named if names]
    return found or ["the inputs come in another order"]


def resized(old: pa.Table, new: pa.Table, done: set[int]) -> list[str]:
    """Which inputs of finished shards have another size, in words; unfinished ones may have been repaired."""
    changed = pc.fill_null(pc.not_equal(old["size"], new["size"]), False)
    names = [row["location"] for row in old.filter(changed).to_pylist() if row["shard"] in done]
    return [f"{len(names)} finished inputs have another size ({listed(names, most=3)})"] if names else []


def _listed_inputs(
    inputs: Iterable[str], recursive: bool, store: Store | None, must_exist: bool
) -> Iterator[tuple[str, int | None]]:
    def is_own(location: str) -> bool:
        return store is not None and bool(OWN.fullmatch(posixpath.basename(location))) and store.contains(location)

    suffixes = (*SUFFIXES, *TARS, *PARQUET)
    for text in inputs:
        if is_url(text) and not text.startswith("@"):
            found = list_url(text, recursive, suffixes)
            yield from ((location, size) for location, size in found if location == text or not is_own(location))
            continue
        for location in expand([text], recursive, suffixes):
            size = None if is_url(location) else _size(location)
            if size is None and location == text and must_exist:
                raise UserError(f"{text}: {_why_not_there(text)}; nothing was begun.")
            if location == text or not is_own(location):
                yield _plain(location), size


def _why_not_there(path: str) -> str:
    try:
        os.stat(path)
    except PermissionError:
        return "permission denied"
    except OSError:
        pass
    return "no such file or folder"


def _plain(location: str) -> str:
    """A path without "./" and doubled slashes, so that a file that is named in two ways is one input."""
    return str(Path(location)) if not is_url(location) and ("./" in location or "//" in location) else location


def _require_any(table: pa.Table) -> None:
    """Raise UserError when nothing that lists name is there: their paths start from another folder, most likely."""
    locations = [_from_bytes(row) for row in table.filter(pc.is_null(table["size"]))["location"].to_pylist()]
    if len(locations) == table.num_rows and not any(map(is_url, locations)):
        raise UserError(
            f"none of the {table.num_rows} inputs is there, such as {locations[0]}: paths in a list are absolute, or "
            f"start from the folder of this command ({os.getcwd()})."
        )


def _size(path: str) -> int | None:
    """Bytes of a file; None when it is gone: an image is then a row with an error, a shard fails when it is read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _table(entries: Iterator[tuple[str, int | None]]) -> pa.Table:
    batches, rows = [], []
    for location, size in entries:
        rows.append((0, kind_of(location), _to_bytes(location), size))
        if len(rows) == CHUNK:
            batches.append(_batch(rows))
            rows = []
    return pa.Table.from_batches([*batches, _batch(rows)], SCHEMA)


def _to_bytes(location: str) -> bytes:
    return location.encode() if is_url(location) else os.fsencode(location)


def _from_bytes(location: bytes) -> str:
    return location.decode() if b"://" in location else os.fsdecode(location)


def _batch(rows: list[tuple[int, str, bytes, int | None]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _without_repeats(table: pa.Table) -> tuple[pa.Table, int]:
    unique = len(pc.unique(table["location"]))
    repeated = table.num_rows - unique
    if repeated:
        positions = table.append_column("row", pa.array(np.arange(table.num_rows)))
        first = positions.group_by("location").aggregate([("row", "min")])["row_min"].to_numpy()
        table = table.take(pa.array(np.sort(first)))
    return table, repeated
