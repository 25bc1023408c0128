"""The feature cache: maps of the frozen tower on disk, float16, read through a memory map. Needs no torch.

A cache is four files named after the hash of its key: `<name>.json` (the key in words), `<name>.maps` (rows of L*D
float16 values, in the order of the images' hashes), `<name>.sha256` (for each row the SHA-256 of its bytes) and a lock.
While it is being filled the maps are called `<name>.maps.partial`, and rows in it that have their hash are kept:
filling goes on behind them. A row is compared with its hash when a process first reads it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from sdpl.atomic import remove_leftovers
from sdpl.bundle import sha256
from sdpl.errors import UserError
from sdpl.files import replace_file, sync, writing
from sdpl.progress import Progress, Report, Steps

DTYPE = np.dtype("<f2")
FORMAT = "2, with a hash of each row"
HASH_BYTES = hashlib.sha256().digest_size
REMAKE = "delete it, it will be made again"

Key = dict[str, str]  # what a cache depends on ("weights", "image size", ...), as text: any difference is another cache
Fill = Callable[[int], Iterator[np.ndarray]]  # from this row on: blocks of rows [n,L,D]


class FeatureCache:
    """maps float16 [N,L,D] on disk, and which row belongs to an image's SHA-256."""

    def __init__(self, path: Path, order: Sequence[str], shape: tuple[int, int]):
        """order: the images' SHA-256 of each row. Raises UserError when the files have other sizes."""
        rows = len(order)
        if not _has_size(path, rows * _row_bytes(shape)) or not _has_size(_hashes(path), rows * HASH_BYTES):
            raise UserError(f"{path}: is damaged (its size is not what was written); {REMAKE}.")
        self.path, self.row = path, {digest: row for row, digest in enumerate(order)}
        self._maps = np.memmap(path, DTYPE, "r", shape=(rows, *shape))  # [N,L,D]
        self._hashes = _hashes(path).read_bytes()
        self._is_checked = np.zeros(rows, dtype=bool)  # [N]

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """These rows, float16 [B,L,D]. Raises UserError when one is not what was written."""
        for row in rows:
            if not self._is_checked[row]:
                if _digest(self._maps[row]) != self._hashes[row * HASH_BYTES : (row + 1) * HASH_BYTES]:
                    raise UserError(f"{self.path}: row {row} is damaged (hash differs); {REMAKE}.")
                self._is_checked[row] = True
        return self._maps[rows]  # [B,L,D]


def hash_images(paths: Iterable[Path], workers: int, steps: Steps) -> dict[Path, str]:
    """The SHA-256 of each file's bytes. Raises UserError for a file that cannot be read."""

    def digest(path: Path) -> tuple[Path, str]:
        try:
            return path, sha256(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from None

    found = {}
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the interpreter lock
        for path, value in pool.map(digest, paths):
            found[path] = value
            steps.advance()
    return found


def hash_all(values: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value)
    return digest.hexdigest()


def open_cache(
    folder: Path, key: Key, digests: Iterable[str], shape: tuple[int, int], fill: Fill, report: Report
) -> FeatureCache:
    """The cache of this key in `folder`, filled first where it is not whole.

    digests: of the images, in any order. shape: L and D. `fill` is asked for the rows that are missing, in the order
    of the sorted digests; `report` is told when there are only caches of something else. Another process that fills the
    same cache is waited for. Raises UserError when the disk is full (the next run continues from what is written), the
    folder cannot be written, or the file is damaged.
    """
    order = sorted(set(digests))
    key = {
        "format": FORMAT,
        **key,
        "images": hash_all(digest.encode() for digest in order),
        "shape": f"{len(order)} x {shape}",
    }
    name = hash_all([json.dumps(key, sort_keys=True).encode()])[:16]
    path = folder / f"{name}.maps"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                remove_leftovers(folder)
                _report_others(folder, key, report)
                with replace_file(folder / f"{name}.json") as temporary:
                    temporary.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
                _write(path, len(order), shape, fill)
    return FeatureCache(path, order, shape)


def within_float16(maps: np.ndarray) -> np.ndarray:
    """The same maps. Raises UserError when one of the values is NaN or more than float16 can hold."""
    if not (np.abs(maps) <= np.finfo(DTYPE).max).all():
        raise UserError("the tower's maps overflow float16, as the cache keeps them: train without data.cache.")
    return maps


def _write(path: Path, rows: int, shape: tuple[int, int], fill: Fill) -> None:
    partial = path.with_suffix(".maps.partial")
    with open(partial, "a+b") as stream, open(_hashes(path), "a+b") as hashes:
        done = _whole_rows(stream, hashes, _row_bytes(shape))
        stream.truncate(done * _row_bytes(shape))  # a row that was cut off is made again
        hashes.truncate(done * HASH_BYTES)
        _require_space(path, (rows - done) * _row_bytes(shape))
        for block in fill(done) if done < rows else ():
            written = block.astype(DTYPE)  # [n,L,D]
            stream.write(written.tobytes())
            hashes.write(b"".join(map(_digest, written)))
            stream.flush()
            hashes.flush()
    sync(partial)
    sync(_hashes(path))
    os.replace(partial, path)
    sync(path.parent)


def _whole_rows(stream: BinaryIO, hashes: BinaryIO, row_bytes: int) -> int:
    """How many rows from the start have their hash: after a power cut a file may hold zeros, or less than the other."""
    stream.seek(0)
    hashes.seek(0)
    done = 0
    while len(row := stream.read(row_bytes)) == row_bytes and hashes.read(HASH_BYTES) == hashlib.sha256(row).digest():
        done += 1
    return done


def _digest(row: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(row).data).digest()


def _hashes(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"cannot write {path}: the cache needs {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free; "
            "free space, name another data.cache, or train without it."
        )


def _report_others(folder: Path, key: Key, report: Report) -> None:
    """Why a folder with caches has none for this run: the difference from the one that is nearest."""
    differences = []
    for path in folder.glob("*.json"):
        try:
            other = json.loads(path.read_bytes())
            different = sorted(part for part in key | other if key.get(part) != other.get(part))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
        if different and "view" not in different:  # another view of the same images is no surprise
            differences.append((len(different), path.stem, different))
    if differences:
        _, name, different = min(differences)
        report(Progress(f"cache {folder}/{name} is not used: it was made with other {', '.join(different)}."))


def _row_bytes(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * DTYPE.itemsize
