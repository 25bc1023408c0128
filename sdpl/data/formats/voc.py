"""Pascal VOC's image-level labels: `ImageSets/Main/<split>.txt` and `<category>_<split>.txt` beside it."""

import glob
from pathlib import Path

import numpy as np

from sdpl.data.formats.bounds import require_file, require_room
from sdpl.errors import UserError, listed

# 0: only objects marked "difficult", which the field counts as absent (VOC 2007's own evaluation leaves them out).
LABELS = {"1": 1, "-1": -1, "0": -1}


def is_voc(path: Path) -> bool:
    return path.suffix == ".txt" and path.parent.name == "Main"


def read_voc(
    path: Path, images: Path | None, categories: tuple[str, ...] | None
) -> tuple[Path, list[str], np.ndarray, tuple[str, ...]]:
    """A reader of `sdpl.data.formats`: the split that the file lists, and every category with a file for it.

    Categories are in alphabetical order. Images are `<root>/JPEGImages/<name>.jpg`.
    """
    names = [line.split()[0] for line in _lines(path)]
    files = sorted(path.parent.glob(f"*_{glob.escape(path.stem)}.txt"))
    if not files:
        raise UserError(
            f"{path}: has no category files such as aeroplane_{path.stem}.txt beside it; "
            "name the list of a split, such as ImageSets/Main/trainval.txt."
        )
    require_room(path, len(names), len(files))
    labels = np.stack([_column(file, names) for file in files], axis=1)  # [N,C]
    folder = path.resolve().parents[2] / "JPEGImages" if images is None else images
    found = tuple(file.stem.removesuffix(f"_{path.stem}") for file in files)
    return folder, [f"{name}.jpg" for name in names], labels, found


def _column(file: Path, names: list[str]) -> np.ndarray:
    """The labels int8 [N] of one category, for the images in the order of `names`."""
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(file), 1):
        name, *label = line.split()
        if len(label) != 1 or label[0] not in LABELS:
            raise UserError(f"{file}:{number}: {line.strip()!r}: expected an image and 1, -1 or 0.")
        labels[name] = LABELS[label[0]]
    odd = sorted(set(names) ^ set(labels))
    if odd:
        raise UserError(f"{file}: does not list the images of its split ({len(odd)} differ: {listed(odd)}).")
    return np.array([labels[name] for name in names], dtype=np.int8)


def _lines(file: Path) -> list[str]:
    require_file(file)
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not a text file.") from None
    if not lines:
        raise UserError(f"{file}: lists no image.")
    return lines
