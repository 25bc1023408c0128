"""Predictions of many images, as the command prints and draws them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.errors import UserError
from sdpl.preprocess import load_image
from sdpl.runtime.recognition import Recognition
from sdpl.runtime.recognizer import Recognizer


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
        return f"{self.path}: {listed or 'nothing above threshold'}"

    def to_json(self) -> str:
        return json.dumps({"image": str(self.path), **self.recognition.to_dict()})


def predict(
    recognizer: Recognizer, paths: Iterable[Path], threshold: float | None = None, with_attention: bool = False
) -> Iterator[Prediction | UserError]:
    """For each path in order its prediction, or the error that says why it could not be read."""
    for path, scored in recognizer.stream(paths, with_attention):
        if isinstance(scored, UserError):
            yield scored
            continue
        maps = () if scored.attention is None else zip(recognizer.categories, scored.attention, strict=True)
        yield Prediction(path, recognizer.recognition(scored.scores, threshold), dict(maps))


def attention_names(paths: list[Path]) -> list[str]:
    """The pictures' names: those of the images, with the position in front where two images share a name."""
    count = Counter(path.stem for path in paths)
    return [f"{i:04d}-{p.stem}.png" if count[p.stem] > 1 else f"{p.stem}.png" for i, p in enumerate(paths)]


def draw(prediction: Prediction, top: int, out: Path) -> None:
    """Write the heat maps of the `top` best categories over the photo as a PNG."""
    from sdpl.plots import draw_attention

    maps = [(name, score, prediction.attention[name]) for name, score in prediction.best(top)]
    draw_attention(load_image(prediction.path, decode_side=800), maps, out)
