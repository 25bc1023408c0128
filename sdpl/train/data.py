"""COCO-format data: which images there are, which categories, which labels are known."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    """Images uint8 [B,S,S,3] and labels int8 [B,C], in the order of the data; the last batch may be smaller.

    The next batch is decoded in threads (Pillow releases the interpreter lock) while this one is used.
    """
    with ThreadPoolExecutor(workers) as pool:

        def submit(start: int) -> list[Future]:
            return [pool.submit(preprocess, path, image_size) for path in data.images[start : start + batch_size]]

        ahead = submit(0)
        for start in range(0, len(data), batch_size):
            current, ahead = ahead, submit(start + batch_size)
            yield np.stack([future.result() for future in current]), data.labels[start : start + batch_size]


def coco_images(annotations: Path) -> Path:
    """Where COCO keeps the images of an annotation file.

    `<root>/annotations/instances_<split>.json` belongs to `<root>/<split>/`; otherwise the images are
    looked for beside the annotation file.
    """
    split = annotations.stem.removeprefix("instances_")
    usual = annotations.parent.parent / split
    return usual if annotations.parent.name == "annotations" and usual.is_dir() else annotations.parent


def read_coco(annotations: str | Path, images: str | Path | None = None) -> LabelledImages:
    """Read a COCO-format file: a category with an annotation in an image is present there, the others absent.

    Categories are in the order of their ids. All images count, also those without annotations.
    Raises UserError for anything that does not fit together, naming the first offenders.
    """
    annotations = Path(annotations)
    content = _read_json(annotations)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    names = tuple(str(c["name"]) for c in categories)
    column = {c["id"]: i for i, c in enumerate(categories)}
    if len(set(names)) < len(names) or len(column) < len(names):
        raise UserError(f"{annotations}: a category id or name stands twice; each must be unique.")
    row = {image["id"]: i for i, image in enumerate(content["images"])}
    labels = np.full((len(row), len(names)), -1, dtype=np.int8)  # [N,C]
    for key, known in (("category_id", column), ("image_id", row)):
        unknown = sorted({a[key] for a in content["annotations"]} - set(known))
        if unknown:
            what = "categories" if key == "category_id" else "images"
            raise UserError(f"{annotations}: annotations name {what} that the file does not list: {listed(unknown)}.")
    for annotation in content["annotations"]:
        labels[row[annotation["image_id"]], column[annotation["category_id"]]] = 1
    folder = Path(images) if images is not None else coco_images(annotations)
    return LabelledImages(_existing(folder, content["images"], annotations), labels, names)


def require_known_labels(data: LabelledImages) -> None:
    """Raise UserError when a category has no known label at all: nothing could be learned about it."""
    unknown = [name for name, known in zip(data.categories, (data.labels != 0).any(axis=0), strict=True) if not known]
    if unknown:
        raise UserError(
            f"no known label at all for {len(unknown)} of {len(data.categories)} categories ({listed(unknown)}): "
            "raise data.known_proportion, add labels, or remove the categories."
        )


def _existing(folder: Path, images: list[dict], annotations: Path) -> tuple[Path, ...]:
    paths = tuple(folder / image["file_name"] for image in images)
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    missing = [p for p in paths if p.name not in present and not p.is_file()]
    if missing:
        raise UserError(
            f"{annotations}: {len(missing)} of {len(paths)} images are not in {folder} "
            f"({listed((p.name for p in missing), 3)}): check the images folder."
        )
    if not paths:
        raise UserError(f"{annotations}: lists no images.")
    return paths


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the annotation file (.json) in it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    for key, fields in needed.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) and all(f in r for f in fields) for r in rows):
            raise UserError(f"{path}: is not COCO format: needs a list {key!r} of objects with {' and '.join(fields)}.")
    if not content["categories"]:
        raise UserError(f"{path}: lists no categories.")
    return content
