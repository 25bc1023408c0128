"""COCO format, and LVIS's way of saying which categories are known to be absent."""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from sdpl.data.formats.bounds import require_room
from sdpl.errors import UserError, listed


class CocoImage(BaseModel):
    id: int
    file_name: str
    neg_category_ids: list[int] | None = None  # LVIS: known to be absent; categories named nowhere are then unknown


class CocoAnnotation(BaseModel):
    image_id: int
    category_id: int


class CocoCategory(BaseModel):
    id: int
    name: str


class CocoFile(BaseModel):
    """The parts of a COCO-format file that image-level labels need; everything else in it is skipped."""

    images: list[CocoImage] = Field(min_length=1)
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory] = Field(min_length=1)


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
    try:
        return CocoFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise UserError(f"{path}: is not JSON ({first['msg']}).") from None
        raise UserError(f"{path}: is not COCO format: {where or 'the file'}: {first['msg']}.") from None
