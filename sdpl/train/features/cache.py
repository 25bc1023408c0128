"""The feature cache: maps of the frozen tower on disk, float16, read through a memory map. Needs no torch.

A cache is three files named after the hash of its key: `<name>.json` (the key in words), `<name>.maps` (rows of L*D
float16 values, in the order of the images' hashes) and a lock. While it is being filled the maps are called
`<name>.maps.partial`, and whole rows in it are kept: filling goes on behind them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from sdpl.bundle import sha256
from sdpl.errors import UserError
from sdpl.files import replace_file, sync, writing
from sdpl.progress import Progress, Report, Steps

DTYPE = np.dtype("<f2")

Key = dict[str, str]  # what a cache depends on ("weights", "image size", ...), as text: any difference is another cache
Fill = Callable[[int], Iterator[np.ndarray]]  # from this row on: blocks of rows [n,L,D]


@dataclass(frozen=True)
class FeatureCache:
    """maps float16 [N,L,D], and which row belongs to an image's SHA-256."""

    maps: np.ndarray
    row: dict[str, int]


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
    key = {**key, "images": hash_all(digest.encode() for digest in order), "shape": f"{len(order)} x {shape}"}
    name = hash_all([json.dumps(key, sort_keys=True).encode()])[:16]
    path = folder / f"{name}.maps"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                _report_others(folder, key, report)
                with replace_file(folder / f"{name}.json") as temporary:
                    temporary.write_text(json.dumps(key, indent=2) + "\n")
                _write(path, len(order), shape, fill)
    if path.stat().st_size != len(order) * _row_bytes(shape):
        raise UserError(f"{path}: is damaged (its size is not what was written); delete it, it will be made again.")
    maps = np.memmap(path, DTYPE, "r", shape=(len(order), *shape))  # [N,L,D]
    return FeatureCache(maps, {digest: row for row, digest in enumerate(order)})


def within_float16(maps: np.ndarray) -> np.ndarray:
    """The same maps. Raises UserError when one of the values is NaN or more than float16 can hold."""
    if not (np.abs(maps) <= np.finfo(DTYPE).max).all():
        raise UserError("the tower's maps overflow float16, as the cache keeps them: train without data.cache.")
    return maps


def _write(path: Path, rows: int, shape: tuple[int, int], fill: Fill) -> None:
    partial = path.with_suffix(".maps.partial")
    with open(partial, "ab") as stream:
        done = stream.tell() // _row_bytes(shape)
        stream.truncate(done * _row_bytes(shape))  # a row that was cut off is made again
        _require_space(path, (rows - done) * _row_bytes(shape))
        for block in fill(done) if done < rows else ():
            stream.write(block.astype(DTYPE).tobytes())
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


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
