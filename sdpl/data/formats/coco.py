"""COCO format, and LVIS's way of saying which categories are known to be absent."""

import re
from pathlib import Path

import msgspec
import numpy as np

from sdpl.data.formats.bounds import require_room
from sdpl.errors import UserError, listed

# What JSON does not have, but Python's json writes; strings are matched so that nothing is found inside them.
NOT_NUMBERS = re.compile(rb'"(?:[^"\\]|\\.)*+"|NaN|-?Infinity')


class CocoImage(msgspec.Struct, gc=False):
    id: int
    file_name: str
    neg_category_ids: list[int] | None = None  # LVIS: known to be absent; categories named nowhere are then unknown


class CocoAnnotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int


class CocoCategory(msgspec.Struct, gc=False):
    id: int
    name: str


class CocoFile(msgspec.Struct):
    """The parts of a COCO-format file that image-level labels need; everything else in it is skipped, and takes no
    memory (docs/decisions/0082)."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def read_coco(
    path: Path, images: Path | None, categories: tuple[str, ...] | None
) -> tuple[Path, list[str], np.ndarray, tuple[str, ...]]:
    """A reader of `sdpl.data.formats`: a category with an annotation in an image is present there.

    The other categories are absent; but where an image lists `neg_category_ids`, as LVIS does, only those are absent
    and the rest is unknown. Categories are in the order of their ids. All images count, also those without annotations.
    """
    content = _parse(path)
    ordered = sorted(content.categories, key=lambda c: c.id)
    column = {c.id: i for i, c in enumerate(ordered)}
    row = {image.id: i for i, image in enumerate(content.images)}
    if len(column) < len(ordered):
        raise UserError(f"{path}: a category id appears twice; each must be unique.")
    if len(row) < len(content.images):
        raise UserError(f"{path}: an image id appears twice; each must be unique.")
    named = {a.category_id for a in content.annotations}.union(*(i.neg_category_ids or () for i in content.images))
    _require_listed(path, "categories", named, column)
    _require_listed(path, "images", {a.image_id for a in content.annotations}, row)
    require_room(path, len(row), len(ordered))
    labels = np.full((len(row), len(ordered)), -1, dtype=np.int8)  # [N,C]
    for i, image in enumerate(content.images):
        if image.neg_category_ids is not None:
            labels[i] = 0
            labels[i, [column[c] for c in image.neg_category_ids]] = -1
    for annotation in content.annotations:
        labels[row[annotation.image_id], column[annotation.category_id]] = 1
    folder = coco_images(path) if images is None else images
    return folder, [image.file_name for image in content.images], labels, tuple(c.name for c in ordered)


def coco_images(annotations: Path) -> Path:
    """Where COCO keeps the images of an annotation file.

    `<root>/annotations/instances_<split>.json` belongs to `<root>/<split>/`; otherwise the images are
    looked for beside the annotation file.
    """
    split = annotations.stem.removeprefix("instances_")
    usual = annotations.parent.parent / split
    return usual if annotations.parent.name == "annotations" and usual.is_dir() else annotations.parent


def _require_listed(annotations: Path, what: str, named: set[int], listed_ids: dict[int, int]) -> None:
    unknown = sorted(named - listed_ids.keys())
    if unknown:
        raise UserError(f"{annotations}: annotations name {what} that the file does not list: {listed(unknown)}.")


def _parse(path: Path) -> CocoFile:
    content = path.read_bytes()
    try:
        file = _decode(content)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        where = re.sub(r"\[(\d+)\]", r".\1", place.rstrip("`"))
        raise UserError(f"{path}: is not COCO format: {where or 'the file'}: {what}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}).") from None
    empty = [name for name in ("images", "categories") if not getattr(file, name)]
    if empty:
        raise UserError(f"{path}: is not COCO format: {empty[0]}: List should have at least 1 item.")
    return file


def _decode(content: bytes) -> CocoFile:
    """Numbers as text and 1.0 for 1 are taken as ids, and NaN and infinities where labels need no number."""
    try:
        return msgspec.json.decode(content, type=CocoFile, strict=False)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        changed = bytearray(content)
        for match in NOT_NUMBERS.finditer(content):
            if not match[0].startswith(b'"'):
                changed[match.start() : match.end()] = b"[]".ljust(len(match[0]))  # no id and no name either
        if changed == content:
            raise
        return msgspec.json.decode(changed, type=CocoFile, strict=False)
