"""Random views of training images: resized crops and mirror images, drawn before the image becomes the model's input.

A view depends only on the seed, the view's number and the image's name, never on what was drawn before it: so a resumed
run and another number of processes see the same views.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.preprocess import load_image, squash

VERSION = 1  # of the views: raise it whenever a view's pixels change; feature caches of augmented views depend on it
ASPECT = (3 / 4, 4 / 3)  # of a crop, relative to the image's own: the field's usual range
TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Crops of at least `min_crop` of the image's area (1 keeps all of it), mirrored every other time with `flip`."""

    flip: bool
    min_crop: float
    seed: int

    def view(self, path: Path, image_size: int, number: int) -> np.ndarray:
        """uint8 [S,S,3]: view `number` of an image. Raises UserError as `sdpl.preprocess.load_image`."""
        rng = np.random.default_rng((self.seed, number, zlib.crc32(path.name.encode())))
        image = load_image(path, decode_side=math.ceil(2 * image_size / math.sqrt(self.min_crop)))
        pixels = squash(image, image_size, self._box(rng, *image.size) if self.min_crop < 1 else None)  # [S,S,3]
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels

    def _box(self, rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
        """A crop of random area, aspect and place, in pixels; the whole image if none of a few draws fits into it."""
        for _ in range(TRIES):
            area = rng.uniform(self.min_crop, 1)
            aspect = math.exp(rng.uniform(*np.log(ASPECT)))
            w, h = width * math.sqrt(area * aspect), height * math.sqrt(area / aspect)
            if w <= width and h <= height:
                x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
                return x, y, x + w, y + h
        return 0, 0, width, height
