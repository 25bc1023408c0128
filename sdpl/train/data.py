"""COCO-format data: which images there are, which categories, which labels are known."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from sdpl.errors import UserError, listed
from sdpl.preprocess import preprocess


@dataclass(frozen=True)
class LabelledImages:
    """Image paths [N], labels int8 [N,C] of 1 present, -1 absent, 0 unknown, and the categories' names [C]."""

    images: tuple[Path, ...]
    labels: np.ndarray
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> "LabelledImages":
        indices = list(indices)
        return LabelledImages(tuple(self.images[i] for i in indices), self.labels[indices], self.categories)

    def with_labels(self, labels: np.ndarray) -> "LabelledImages":
        return LabelledImages(self.images, labels, self.categories)


def batches(
    data: LabelledImages, image_size: int, batch_size: int, workers: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [B,S,S,3] and labels int8 [B,C], in the order of the data; the last batch may be smaller."""
    groups = [range(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size)]
    for rows, images in decoded(groups, lambda row: preprocess(data.images[row], image_size), workers):
        yield images, data.labels[rows]


def decoded(
    groups: Iterable[Sequence[int]], load: Callable[[int], np.ndarray], workers: int | None = None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """For each group of rows: the rows, and their images as `load` gives them, stacked to uint8 [B,S,S,3].

    The next group is decoded in threads (Pillow releases the interpreter lock) while this one is used.
    """
    with ThreadPoolExecutor(workers) as pool:

        def submit(group: Sequence[int]) -> list[tuple[int, Future]]:
            return [(int(row), pool.submit(load, int(row))) for row in group]

        def finish(group: list[tuple[int, Future]]) -> tuple[list[int], np.ndarray]:
            return [row for row, _ in group], np.stack([future.result() for _, future in group])

        ahead = None
        for group in groups:
            current, ahead = ahead, submit(group)
            if current is not None:
                yield finish(current)
        if ahead is not None:
            yield finish(ahead)


def coco_images(annotations: Path) -> Path:
    """Where COCO keeps the images of an annotation file.

    `<root>/annotations/instances_<split>.json` belongs to `<root>/<split>/`; otherwise the images are
    looked for beside the annotation file.
    """
    split = annotations.stem.removeprefix("instances_")
    usual = annotations.parent.parent / split
    return usual if annotations.parent.name == "annotations" and usual.is_dir() else annotations.parent


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
    """The parts of a COCO-format file that image-level labels need; everything else in it is passed over."""

    images: list[CocoImage] = Field(min_length=1)
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory] = Field(min_length=1)


def read_coco(annotations: str | Path, images: str | Path | None = None) -> LabelledImages:
    """Read a COCO-format file: a category with an annotation in an image is present there.

    The other categories are absent; but where an image lists `neg_category_ids`, as LVIS does, only those are absent
    and the rest is unknown. Categories are in the order of their ids. All images count, also those without
    annotations. Raises UserError for anything that does not fit together, naming the first offenders.
    """
    annotations = Path(annotations)
    content = _parse(annotations)
    categories = sorted(content.categories, key=lambda c: c.id)
    names = tuple(c.name for c in categories)
    column = {c.id: i for i, c in enumerate(categories)}
    row = {image.id: i for i, image in enumerate(content.images)}
    if len(set(names)) < len(names) or len(column) < len(names):
        raise UserError(f"{annotations}: a category id or name stands twice; each must be unique.")
    if len(row) < len(content.images):
        raise UserError(f"{annotations}: an image id stands twice; each must be unique.")
    named = {a.category_id for a in content.annotations}.union(*(i.neg_category_ids or () for i in content.images))
    _require_listed(annotations, "categories", named, column)
    _require_listed(annotations, "images", {a.image_id for a in content.annotations}, row)
    labels = np.full((len(row), len(names)), -1, dtype=np.int8)  # [N,C]
    for i, image in enumerate(content.images):
        if image.neg_category_ids is not None:
            labels[i] = 0
            labels[i, [column[c] for c in image.neg_category_ids]] = -1
    for annotation in content.annotations:
        labels[row[annotation.image_id], column[annotation.category_id]] = 1
    folder = Path(images) if images is not None else coco_images(annotations)
    return LabelledImages(_existing(folder, content.images, annotations), labels, names)


def require_known_labels(data: LabelledImages) -> None:
    """Raise UserError when a category has no known label at all: nothing could be learned about it."""
    unknown = [name for name, known in zip(data.categories, (data.labels != 0).any(axis=0), strict=True) if not known]
    if unknown:
        raise UserError(
            f"no known label at all for {len(unknown)} of {len(data.categories)} categories ({listed(unknown)}): "
            "raise data.known_proportion, add labels, or remove the categories."
        )


def _require_listed(annotations: Path, what: str, named: set[int], listed_ids: dict[int, int]) -> None:
    unknown = sorted(named - listed_ids.keys())
    if unknown:
        raise UserError(f"{annotations}: annotations name {what} that the file does not list: {listed(unknown)}.")


def _existing(folder: Path, images: list[CocoImage], annotations: Path) -> tuple[Path, ...]:
    outside = [i.file_name for i in images if Path(i.file_name).is_absolute() or ".." in Path(i.file_name).parts]
    if outside:
        raise UserError(f"{annotations}: file names must lie inside the images folder: {listed(outside, 3)}.")
    paths = tuple(folder / image.file_name for image in images)
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise UserError(
            f"{annotations}: {len(missing)} of {len(paths)} images are not in {folder} "
            f"({listed((p.name for p in missing), 3)}): check the images folder."
        )
    return paths


def _parse(path: Path) -> CocoFile:
    try:
        return CocoFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the annotation file (.json) in it.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise UserError(f"{path}: is not JSON ({first['msg']}).") from None
        raise UserError(f"{path}: is not COCO format: {where or 'the file'}: {first['msg']}.") from None
