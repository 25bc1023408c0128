"""One image's result: scores, or labels, and how a person looks at them, draws them, and saves them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.preprocess import load_image
from sdpl.preprocess.cpu import ImageSource
from sdpl.text import as_utf8

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DRAW_SIDE = 800  # pixels: a large JPEG is decoded at about this size for a picture


@dataclass(frozen=True)
class Scored:
    """One image's scores float32 [C] and, if asked for, the attention of each category, float32 [C,h,w], or its
    embedding, float32 [E]; `target` is what they were computed on."""

    scores: np.ndarray
    target: str
    attention: np.ndarray | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True, repr=False)
class Recognition:
    """What one image shows. `scores`: every category's score in 0..1, best first. `labels`: the categories whose
    score reaches the category's threshold, best first. `target`: what it was computed on.

    `image`: what was given, the path, bytes or picture. `attention`: if asked for, where the model looked for each
    category, float32 [h,w], adding up to 1. Neither counts in comparisons.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]
    target: str
    image: ImageSource | None = field(default=None, compare=False)
    attention: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        named = ", ".join(f"{name} {self.scores[name]:.2f}" for name in self.labels[:8])
        more = f" and {len(self.labels) - 8} more" if len(self.labels) > 8 else ""
        rest = [name for name in self.scores if name not in self.labels]
        below = f"; best below its threshold: {rest[0]} {self.scores[rest[0]]:.2f}" if rest else ""
        return f"Recognition({named or 'nothing above threshold'}{more}{below}; {self.target})"

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k best categories with their scores, best first, whatever their thresholds."""
        return list(self.scores.items())[: max(k, 0)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: labels, scores, target, and the image's path if it has one."""
        image = {"image": as_utf8(str(self.image))} if isinstance(self.image, str | Path) else {}
        return {**image, "labels": list(self.labels), "scores": dict(self.scores), "target": self.target}

    def plot(self, top: int = 5) -> Image.Image:
        """A picture: the photo beside its `top` best categories' scores, and their attention if it was asked for.

        Raises UserError when the result holds no image (it was made from scores alone), or matplotlib is missing.
        """
        from sdpl.plots import draw_recognition

        if self.image is None:
            raise UserError(
                "this result holds no image to draw: it was made from scores; Recognizer.recognize keeps it."
            )
        photo = load_image(self.image, decode_side=DRAW_SIDE)
        maps = [(name, self.attention[name]) for name, _ in self.top(top) if name in self.attention]
        return draw_recognition(photo, self.top(top), set(self.labels), maps)

    def save(self, path: str | Path, top: int = 5) -> Path:
        """Write to a file: .json what `to_dict` gives, .png or .jpg what `plot` draws. Returns its path."""
        path = Path(path)
        if path.suffix.lower() == ".json":
            with replace_file(path) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            return path
        kind = PICTURES.get(path.suffix.lower())
        if kind is None:
            raise UserError(f"{path}: expected a name that ends in .json, {', '.join(PICTURES)}.")
        picture = self.plot(top)
        with replace_file(path) as temporary:
            picture.save(temporary, format=kind)
        return path
