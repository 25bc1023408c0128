"""The recognizer: a bundle, opened on one backend."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.bundle import Bundle
from sdpl.preprocess import ImageSource, preprocess
from sdpl.runtime.backends import Choice, open_backend

BATCH = 16  # images per engine call in `recognize`


@dataclass(frozen=True)
class Recognition:
    """What one image shows. `scores`: every category's score in 0..1, best first. `labels`: the categories whose
    score reaches the category's threshold, best first."""

    labels: tuple[str, ...]
    scores: dict[str, float]


class Recognizer:
    """Scores images with a bundle. Thread-safe; use as a context manager, or call `close`."""

    def __init__(self, bundle: Bundle, choice: Choice):
        self.bundle = bundle
        self.target, self.backend, self.passed_over = choice.target, choice.backend, choice.passed_over

    @classmethod
    def open(cls, path: str | Path, backend: str = "auto", threads: int | None = None) -> "Recognizer":
        """Open a bundle. backend: a backend's name, a target's name, or "auto" for the fastest that runs here;
        `passed_over` then says why faster ones do not. threads: cores of one call, on a CPU.

        Raises UserError when the bundle is damaged or nothing of it runs here.
        """
        bundle = Bundle.open(path)
        return cls(bundle, open_backend(bundle, backend, threads))

    @property
    def categories(self) -> tuple[str, ...]:
        return self.bundle.manifest.categories

    @property
    def image_size(self) -> int:
        return self.bundle.manifest.preprocessing.image_size

    def scores(self, images: Any) -> np.ndarray:
        """float32 [B,C] in 0..1 from preprocessed images, uint8 [B,S,S,3]. An empty batch gives [0,C].

        On a GPU backend the images may also lie on that GPU: anything with `__cuda_array_interface__`, read without a
        copy. Raises ValueError for another shape or type.
        """
        self._check(images)
        if images.shape[0] == 0:
            return np.zeros((0, len(self.categories)), dtype=np.float32)
        return self.backend.scores(images)

    def attention(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and, for each category, where the model looked: float32 [B,C,h,w], adding up to 1."""
        self._check(images)
        scores, attention = self.backend.attention(images)
        return scores, attention.reshape(*scores.shape, *self.bundle.manifest.map_size)

    def recognize(self, images: list[ImageSource], threshold: float | None = None) -> list[Recognition]:
        """Labels and scores of paths, encoded bytes or PIL images, in their order.

        threshold: for all categories, instead of the bundle's own. Raises UserError naming a bad image.
        """
        results: list[Recognition] = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), BATCH):
                inputs = list(pool.map(self.preprocess, images[start : start + BATCH]))
                results.extend(self.recognition(row, threshold) for row in self.scores(np.stack(inputs)))
        return results

    def recognition(self, scores: np.ndarray, threshold: float | None = None) -> Recognition:
        """The recognition of one image's scores [C]."""
        thresholds = self.bundle.manifest.thresholds if threshold is None else [threshold] * len(self.categories)
        order = np.argsort(-scores, kind="stable")
        labels = tuple(self.categories[c] for c in order if scores[c] >= thresholds[c])
        return Recognition(labels, {self.categories[c]: float(scores[c]) for c in order})

    def preprocess(self, image: ImageSource) -> np.ndarray:
        """uint8 [S,S,3]: this model's input for one image."""
        return preprocess(image, self.image_size)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> "Recognizer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _check(self, images: Any) -> None:
        side, shape = self.image_size, tuple(images.shape)
        dtype = np.dtype(getattr(images, "__cuda_array_interface__", {}).get("typestr") or images.dtype)
        if len(shape) != 4 or shape[1:] != (side, side, 3) or dtype != np.uint8:
            raise ValueError(f"expected images uint8 [B,{side},{side},3], got {dtype} {list(shape)}")
