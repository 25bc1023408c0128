"""Predictions of many images, as the command prints and draws them."""

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.preprocess import load_image
from sdpl.runtime.recognition import DRAW_SIDE, Recognition
from sdpl.runtime.recognizer import Recognizer
from sdpl.text import as_utf8, joined, printable

LONGEST = 240  # bytes of a picture's name before .png; file systems take 255


def predict(
    recognizer: Recognizer, paths: Iterable[Path], threshold: float | None = None, with_attention: bool = False
) -> Iterator[Recognition | UserError]:
    """For each path in order its recognition, or the error that says why it could not be read."""
    for path, scored in recognizer.stream(paths, with_attention):
        if isinstance(scored, UserError):
            yield scored
        else:
            yield recognizer.recognition(scored.scores, threshold, image=path, attention=scored.attention)


def to_line(path: Path, recognition: Recognition, top: int | None) -> str:
    """As it is printed: the `top` best categories; with None, those that reach their threshold."""
    named = [f"{name} {score:.3f}" for name, score in recognition.scores.items()]  # best first
    if top is None:
        named = [f"{name} {recognition.scores[name]:.3f}" for name in recognition.labels] or [
            f"nothing above threshold (best: {named[0]})"
        ]
    return printable(f"{path}: {', '.join(named[:top])}")


@contextmanager
def table(path: Path, categories: tuple[str, ...]) -> Iterator[Callable[[Path, Recognition | UserError], None]]:
    """A call that adds a row to a table which takes its place, whole, at the end.

    .jsonl: a line as `Recognition.to_dict` gives it. .csv: image, labels (as `sdpl.text.joined` writes them), a column
    of scores for each category. Either has a column `error`, for images that could not be read.
    Raises UserError for another name.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"--out {path}: expected a name that ends in .csv or .jsonl.")
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        yield _csv_rows(stream, categories) if path.suffix.lower() == ".csv" else _json_rows(stream)


def _csv_rows(stream: IO[str], categories: tuple[str, ...]) -> Callable[[Path, Recognition | UserError], None]:
    writer = csv.writer(stream)
    writer.writerow(["image", "labels", *categories, "error"])

    def add(path: Path, recognition: Recognition | UserError) -> None:
        if isinstance(recognition, UserError):
            writer.writerow([as_utf8(str(path)), "", *[""] * len(categories), recognition])
            return
        scores = [f"{recognition.scores[name]:.6g}" for name in categories]
        writer.writerow([as_utf8(str(path)), joined(recognition.labels), *scores, ""])

    return add


def _json_rows(stream: IO[str]) -> Callable[[Path, Recognition | UserError], None]:
    def add(path: Path, recognition: Recognition | UserError) -> None:
        if isinstance(recognition, UserError):
            stream.write(json.dumps({"image": as_utf8(str(path)), "error": str(recognition)}) + "\n")
        else:
            stream.write(json.dumps(recognition.to_dict()) + "\n")

    return add


def picture_names(paths: list[Path]) -> list[str]:
    """The pictures' names: no two images share one, also where upper and lower case count as alike.

    An image that shares its name without suffix with another has its folder and suffix in the picture's name; where
    that is not enough, a hash of its path too. So a name depends on the images, not on their order. A path that comes
    twice has one picture.
    """
    choices = [_choices(path) for path in paths]
    levels = [0] * len(paths)
    while True:
        named = defaultdict(set)  # the paths of each name
        for path, names, level in zip(paths, choices, levels, strict=True):
            named[names[level].casefold()].add(path)
        shared = [
            number
            for number, (names, level) in enumerate(zip(choices, levels, strict=True))
            if level + 1 < len(names) and len(named[names[level].casefold()]) > 1
        ]
        if not shared:
            return [names[level] for names, level in zip(choices, levels, strict=True)]
        for number in shared:
            levels[number] += 1


def _choices(path: Path) -> list[str]:
    """Names of an image's picture, from the shortest to one that is its own; in UTF-8 whatever the locale."""
    stem, full = as_utf8(path.stem), as_utf8(f"{path.parent.name}-{path.name}")
    digest = hashlib.sha256(as_utf8(str(path)).encode()).hexdigest()[:12]
    names = (stem, full, f"{full}-{digest}")
    cut = [name if len(name.encode()) <= LONGEST else f"{_first_bytes(name)}-{digest}" for name in names]
    return [os.fsdecode(f"{name}.png".encode()) for name in cut]


def _first_bytes(name: str) -> str:
    return name.encode()[: LONGEST - 13].decode(errors="ignore")


def require_own_places(save: Path | None, attention: Path | None, paths: list[Path], names: list[str]) -> None:
    """Raise UserError when pictures would take each other's place, or that of an image."""
    folders = {"--save": save, "--attention": attention}
    real = {option: os.path.realpath(folder) for option, folder in folders.items() if folder is not None}
    if len(real) == 2 and len(set(real.values())) == 1:
        raise UserError(f"--save and --attention {save}: their pictures have the same names; name two folders.")
    images = {os.path.realpath(path): path for path in paths}
    for option, folder in real.items():
        for name in names:
            image = images.get(os.path.join(folder, name))
            if image is not None:
                raise UserError(
                    f"{option} {folders[option]}: a picture would replace the image {image}; name another folder."
                )


def draw(path: Path, recognition: Recognition, top: int, out: Path) -> None:
    """Write the heat maps of the `top` best categories over the photo as a PNG."""
    from sdpl.plots import draw_attention

    maps = [(name, score, recognition.attention[name]) for name, score in recognition.top(top)]
    draw_attention(load_image(path, decode_side=DRAW_SIDE), maps, out)
