"""Predictions of many images, as the command prints and draws them."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.preprocess import load_image
from sdpl.runtime.recognition import Recognition
from sdpl.runtime.recognizer import Recognizer
from sdpl.text import as_utf8, joined, printable


@dataclass(frozen=True)
class Prediction:
    """One image's recognition, and with it, if asked for, the attention of each category, [h,w]."""

    path: Path
    recognition: Recognition
    attention: dict[str, np.ndarray]

    def best(self, top: int | None) -> list[tuple[str, float]]:
        """The `top` best categories with their scores; with None, those that reach their threshold."""
        names = self.recognition.labels if top is None else list(self.recognition.scores)[:top]
        return [(name, self.recognition.scores[name]) for name in names]

    def to_line(self, top: int | None) -> str:
        listed = ", ".join(f"{name} {score:.3f}" for name, score in self.best(top))
        return printable(f"{self.path}: {listed or 'nothing above threshold'}")

    def to_json(self) -> str:
        return json.dumps(self.recognition.to_dict())


def predict(
    recognizer: Recognizer, paths: Iterable[Path], threshold: float | None = None, with_attention: bool = False
) -> Iterator[Prediction | UserError]:
    """For each path in order its prediction, or the error that says why it could not be read."""
    for path, scored in recognizer.stream(paths, with_attention):
        if isinstance(scored, UserError):
            yield scored
            continue
        maps = () if scored.attention is None else zip(recognizer.categories, scored.attention, strict=True)
        attention = dict(maps)
        recognition = replace(recognizer.recognition(scored.scores, threshold), image=path, attention=attention)
        yield Prediction(path, recognition, attention)


@contextmanager
def table(path: Path, categories: tuple[str, ...]) -> Iterator[Callable[[Path, Prediction | UserError], None]]:
    """A call that adds a row to a table which takes its place, whole, at the end.

    .jsonl: a line as `Prediction.to_json` gives it. .csv: image, labels (as `sdpl.text.joined` writes them), a column
    of scores for each category. Either has a column `error`, for images that could not be read.
    Raises UserError for another name.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"--out {path}: expected a name that ends in .csv or .jsonl.")
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        yield _csv_rows(stream, categories) if path.suffix.lower() == ".csv" else _json_rows(stream)


def _csv_rows(stream: IO[str], categories: tuple[str, ...]) -> Callable[[Path, Prediction | UserError], None]:
    writer = csv.writer(stream)
    writer.writerow(["image", "labels", *categories, "error"])

    def add(path: Path, prediction: Prediction | UserError) -> None:
        if isinstance(prediction, UserError):
            writer.writerow([as_utf8(str(path)), "", *[""] * len(categories), prediction])
            return
        scores = [f"{prediction.recognition.scores[name]:.6g}" for name in categories]
        writer.writerow([as_utf8(str(path)), joined(prediction.recognition.labels), *scores, ""])

    return add


def _json_rows(stream: IO[str]) -> Callable[[Path, Prediction | UserError], None]:
    def add(path: Path, prediction: Prediction | UserError) -> None:
        if isinstance(prediction, UserError):
            stream.write(json.dumps({"image": as_utf8(str(path)), "error": str(prediction)}) + "\n")
        else:
            stream.write(prediction.to_json() + "\n")

    return add


def picture_names(paths: list[Path]) -> list[str]:
    """The pictures' names: those of the images, with the position in front where two images share a name."""
    stems = [os.fsdecode(as_utf8(path.stem).encode()) for path in paths]  # UTF-8 also where the locale has none
    count = Counter(stems)
    return [f"{i:04d}-{stem}.png" if count[stem] > 1 else f"{stem}.png" for i, stem in enumerate(stems)]


def draw(prediction: Prediction, top: int, out: Path) -> None:
    """Write the heat maps of the `top` best categories over the photo as a PNG."""
    from sdpl.plots import draw_attention

    maps = [(name, score, prediction.attention[name]) for name, score in prediction.best(top)]
    draw_attention(load_image(prediction.path, decode_side=800), maps, out)
