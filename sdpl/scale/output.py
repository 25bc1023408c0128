"""One Parquet file per shard: its columns, what of the scores is kept, and the metadata in its footer."""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpl.errors import UserError
from sdpl.scale.readers import Entry
from sdpl.scale.storage import Store
from sdpl.text import as_utf8

METADATA = b"sdpl"  # the key in a file's footer; its value is JSON
ROW_GROUP = 8192  # rows in memory before they are written
Row = tuple[np.ndarray, np.ndarray | None]  # of an image: scores float32 [C], and its embedding float32 [E] or None
DTYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True)
class Keep:
    """What of an image's scores is kept: "all" in the order of the categories, the best ("top") `count`, or those that
    reach their "threshold" (`value`, or the bundle's own)."""

    mode: str
    count: int = 0
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """From "all", "top:5", "threshold" or "threshold:0.4". Raises UserError."""
        mode, _, value = text.partition(":")
        try:
            if mode == "all" and not value:
                return cls("all")
            if mode == "top" and int(value) > 0:
                return cls("top", count=int(value))
            if mode == "threshold" and (not value or 0 <= float(value) <= 1):
                return cls("threshold", value=float(value) if value else None)
        except ValueError:
            pass
        raise UserError(f"--keep {text!r}: expected all, top:K, threshold, or threshold:T with T in 0..1.")

    def pick(self, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """The categories kept of one image's scores [C], best first; not for "all"."""
        order = np.argsort(-scores, kind="stable")
        if self.mode == "top":
            return order[: self.count]
        return order[scores[order] >= (thresholds[order] if self.value is None else self.value)]


@dataclass
class Counts:
    """What a shard held. bad: entries with an error; repeated: those of them whose key came before in the shard;
    above: for each category, the images whose score reaches its threshold."""

    images: int = 0
    bad: int = 0
    repeated: int = 0
    above: list[int] = field(default_factory=list)

    def __add__(self, other: "Counts") -> "Counts":
        above = [a + b for a, b in zip_longest(self.above, other.above, fillvalue=0)]
        return Counts(self.images + other.images, self.bad + other.bad, self.repeated + other.repeated, above)


class ShardWriter:
    """Writes one shard's file. It takes its name when `finish` is called; left before, nothing of it stays."""

    def __init__(
        self,
        store: Store,
        name: str,
        keep: Keep,
        dtype: str,
        categories: tuple[str, ...],
        thresholds: tuple[float, ...],
        embedding_size: int | None = None,
    ):
        """embedding_size: of a column of embeddings; None for none."""
        self.counts = Counts(above=[0] * len(categories))
        self._keep, self._categories = keep, categories
        self._thresholds = np.asarray(thresholds, np.float32)
        labels = [] if keep.mode == "all" else [("labels", pa.list_(pa.string()))]
        scores = ("scores", pa.list_(DTYPES[dtype]))
        embedding = [] if embedding_size is None else [("embedding", pa.list_(DTYPES[dtype], embedding_size))]
        self._schema = pa.schema(
            [("key", pa.string()), ("source", pa.string()), *labels, scores, *embedding, ("error", pa.string())]
        )
        self._numpy = np.dtype(dtype)
        self._above = np.zeros(len(categories), np.int64)
        self._keys: set[str] = set()
        self._rows: list[tuple[Entry, Row | UserError]] = []
        self._stack = ExitStack()
        try:
            path = self._stack.enter_context(store.replace(name))
            stream = self._stack.enter_context(pa.OSFile(os.fsencode(path), "wb"))  # a name may be not UTF-8
            self._file = self._stack.enter_context(pq.ParquetWriter(stream, self._schema, compression="zstd"))
        except BaseException as error:
            self._close(error)
            raise

    def add(self, entry: Entry, result: Row | UserError) -> None:
        """One entry with what was computed of it, or with what is wrong with it. A key that came before is wrong: it
        is kept as a row with an error."""
        if entry.key in self._keys:
            self.counts.repeated += 1
            result = UserError(f"the key {entry.key!r} came before in this shard; this entry is not counted.")
        self._keys.add(entry.key)
        self.counts.images += 1
        if isinstance(result, UserError):
            self.counts.bad += 1
        else:
            self._above += result[0] >= self._thresholds
        self._rows.append((entry, result))
        if len(self._rows) == ROW_GROUP:
            self._write()

    def finish(self, metadata: dict[str, Any]) -> Counts:
        """Write the rest, the footer with `metadata` and the counts, and put the file in place. Raises UserError when
        there is no room."""
        self.counts.above = self._above.tolist()
        try:
            self._write()
            content = json.dumps({**metadata, "counts": asdict(self.counts)})
            self._file.add_key_value_metadata({METADATA: content.encode()})
        except BaseException as error:
            self._close(error)
            raise
        self._stack.close()
        return self.counts

    def abandon(self) -> None:
        """Delete what was written."""
        self._close(UserError("the shard failed"))

    def _close(self, error: BaseException) -> None:
        """Leave the contexts as this error would leave them: the file is deleted, and a full disk has its line."""
        self._stack.__exit__(type(error), error, error.__traceback__)

    def _write(self) -> None:
        if not self._rows:
            return
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for entry, result in self._rows:
            columns["key"].append(as_utf8(entry.key))
            columns["source"].append(as_utf8(entry.source))
            if isinstance(result, UserError):
                columns["error"].append(str(result))
                for name in {"labels", "scores", "embedding"} & columns.keys():
                    columns[name].append(None)
                continue
            columns["error"].append(None)
            kept, embedding = result
            if "labels" in columns:
                picked = self._keep.pick(kept, self._thresholds)
                columns["labels"].append([self._categories[c] for c in picked])
                kept = kept[picked]
            columns["scores"].append(kept.astype(self._numpy))
            if embedding is not None:
                columns["embedding"].append(embedding.astype(self._numpy))
        self._rows = []
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def read_metadata(store: Store, name: str) -> dict[str, Any]:
    """What a finished shard says of itself. Raises UserError when it is none."""
    try:
        with store.open(name) as stream, pq.ParquetFile(stream) as parquet:
            content: dict[str, Any] = json.loads(parquet.metadata.metadata[METADATA])
            return content
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid):
        raise UserError(f"{store.location}/{name}: was not written by this job, or is damaged; delete it.") from None
