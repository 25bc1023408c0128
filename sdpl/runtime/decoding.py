"""Decoded images on their way to a GPU that resizes them itself."""

import threading

import numpy as np

from sdpl.preprocess import load_image, squash
from sdpl.preprocess.inputs import ImageInput, as_source
from sdpl.runtime.gpu_resize import fits

MOST_WAITING = 256 << 20  # bytes of decoded images of one stream; a photo of 4000 x 3000 is decoded to 9 MB


class Decoding:
    """The `sdpl.pipeline.Reading` of a backend that resizes, for one run: upright RGB, in their own size or a JPEG's
    smaller scale, as `preprocess` decodes them. Pictures that are too large for the GPU, and those for which too many
    wait already, are resized here, on the CPU: the same bits. Thread-safe."""

    def __init__(self, image_size: int, most_waiting: int = MOST_WAITING):
        self._side, self._left = image_size, most_waiting
        self._lock = threading.Lock()

    def load(self, image: ImageInput) -> np.ndarray:
        """uint8 [H,W,3], or [S,S,3] where it was resized. Raises UserError as `sdpl.preprocess.load_image`."""
        picture = load_image(as_source(image), decode_side=2 * self._side)
        size = 3 * picture.width * picture.height
        if not fits(picture.height, picture.width, self._side) or not self._take(size):
            return squash(picture, self._side)
        return np.asarray(picture)  # [H,W,3]

    def collate(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """The same images, which do not wait any more."""
        with self._lock:
            self._left += sum(image.nbytes for image in images if not self._is_small(image.nbytes))
        return images

    def _take(self, size: int) -> bool:
        """Whether so many bytes may wait. Small images, no larger than results, always may."""
        if self._is_small(size):
            return True
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def _is_small(self, size: int) -> bool:
        return size <= 3 * self._side**2
