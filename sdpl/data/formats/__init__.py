"""Label files: one mechanism for COCO, VOC and the user's own tables. A format is recognised, or named by a key."""

from collections.abc import Callable
from functools import partial
from os.path import abspath, commonpath
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.data.categories import require_distinct
from sdpl.data.formats.bounds import require_file, require_names
from sdpl.data.formats.table import csv_rows, jsonl_rows, parquet_rows, read_table, write_table
from sdpl.data.formats.voc import is_voc, read_voc
from sdpl.data.images import LabelledImages
from sdpl.errors import UserError, listed
from sdpl.files import replace_file


def _read_coco(
    path: Path, images: Path | None, categories: tuple[str, ...] | None
) -> tuple[Path, list[str], np.ndarray, tuple[str, ...]]:
    from sdpl.data.formats.coco import read_coco  # its library is an extra

    return read_coco(path, images, categories)


# Each reader takes (path, images folder or None, categories or None) and returns the images' folder, their names in
# it [N], labels int8 [N,C] and the categories' names [C]. What holds for every format is checked in `read_labels`.
Reader = Callable[[Path, Path | None, tuple[str, ...] | None], tuple[Path, list[str], np.ndarray, tuple[str, ...]]]
READERS: dict[str, Reader] = {
    "coco": _read_coco,
    "voc": read_voc,
    "csv": partial(read_table, csv_rows),
    "jsonl": partial(read_table, jsonl_rows),
    "parquet": partial(read_table, parquet_rows),
}
SUFFIXES = {".json": "coco", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
FILES = "a COCO .json, VOC's ImageSets/Main/trainval.txt, or a table (.csv, .jsonl, .parquet)"


def read_labels(
    path: str | Path,
    images: str | Path | None = None,
    format: str = "auto",
    categories: tuple[str, ...] | None = None,
    require_images: bool = True,
    values: dict[float, int] | None = None,
) -> LabelledImages:
    """The images and labels of one label file, in the order of the file.

    images: the folder of the images; by default where the format keeps them. format: a key of `READERS`, or "auto" to
    recognise it. categories: the names and their order, as a model or a configuration defines them, all or some of the
    file's; by default its own. values: what the numbers in a table's columns mean, {number: 1 present, -1 absent or 0
    unknown}, where they do not mean themselves. Raises UserError for anything that does not fit together, naming the
    first offenders; with `require_images` also for images that are not there.
    """
    path = Path(path)
    require_distinct(categories or (), "data.categories")
    try:
        require_file(path)
        kind = recognise(path) if format == "auto" else format
        if values is not None and kind in ("coco", "voc"):
            raise UserError(f"{path}: data.values is for tables; {kind.upper()} format says itself what is present.")
        reader: Callable[..., Any] = READERS[kind]
        meaning = {} if values is None else {"values": values}
        folder, names, labels, found = reader(path, None if images is None else Path(images), categories, **meaning)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the annotation file in it: {FILES}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    require_distinct(found, str(path))
    require_names(names, path)
    paths = _inside(folder, names, path)
    if require_images:
        _require_images(paths, folder, path)
    data = LabelledImages(paths, labels, found)
    return data if categories is None else in_order(data, categories, str(path), some=True)


def write_labels(data: LabelledImages, path: Path, replace: bool = False) -> Path | None:
    """Write a table that `read_labels` reads, as its suffix says. Images are named from the table's folder where all
    of them are in it; otherwise from their own common folder, which is returned.

    Raises UserError when `path` exists and is not to be replaced, or has another suffix.
    """
    suffix = path.suffix.lower()
    if SUFFIXES.get(suffix) not in ("csv", "jsonl", "parquet"):
        raise UserError(f"{path}: a table ends in .csv, .jsonl or .parquet.")
    if path.exists() and not replace:
        raise UserError(f"{path} exists: add --force to replace it, or choose another --out.")
    images = [Path(abspath(image)) for image in data.images]
    beside, common = Path(abspath(path.parent)), Path(commonpath([image.parent for image in images]))
    is_beside = common.is_relative_to(beside)
    folder = beside if is_beside else common
    names = [image.relative_to(folder).as_posix() for image in images]
    with replace_file(path) as temporary:
        write_table(temporary, SUFFIXES[suffix], names, data.labels, data.categories)
    return None if is_beside else folder


def recognise(path: Path) -> str:
    """The format of a label file, from its name. Raises UserError when no format has such a name."""
    if path.is_dir():
        raise IsADirectoryError
    if is_voc(path):
        return "voc"
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: of what format is it? Expected {FILES}, or a format by name ({', '.join(READERS)}).")
    return SUFFIXES[path.suffix.lower()]


def in_order(data: LabelledImages, categories: tuple[str, ...], name: str, some: bool = False) -> LabelledImages:
    """The data with its columns in the given order. Raises UserError when the categories are not the same; with `some`
    the data may have others too, which are left out."""
    column = {name: i for i, name in enumerate(data.categories)}
    missing, excess = set(categories) - column.keys(), column.keys() - set(categories)
    if missing or (excess and not some):
        odd = sorted(missing | excess)
        raise UserError(
            f"{name}: its categories are not those of the model or configuration ({len(odd)} differ: {listed(odd)})."
        )
    columns = [column[name] for name in categories]
    return LabelledImages(data.images, data.labels[:, columns], tuple(categories))


def _inside(folder: Path, names: list[str], path: Path) -> tuple[Path, ...]:
    """The images' paths, which must be files of the folder, each named once."""
    full = [Path(abspath(folder / name)) for name in names]
    root = Path(abspath(folder))
    outside = [name for name, image in zip(names, full, strict=True) if not image.is_relative_to(root)]
    if outside:
        raise UserError(
            f"{path}: file names must lie inside the images folder {folder}: {listed(outside, 3)}; name another folder."
        )
    first: dict[Path, int] = {}
    twice = [name for i, name in enumerate(names) if first.setdefault(full[i], i) != i]
    if twice:
        raise UserError(f"{path}: an image appears twice: {listed(twice, 3)}; each must be unique.")
    return tuple(folder / name for name in names)


def _require_images(paths: tuple[Path, ...], folder: Path, path: Path) -> None:
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(paths)} images are not in {folder} "
            f"({listed((p.name for p in missing), 3)}): check the images folder."
        )
