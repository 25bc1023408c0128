"""What a person has in hand in Python: paths, bytes, pictures, arrays, tensors, open files. One image or many.

`as_source` brings one image into the form that `sdpl.preprocess.load_image` reads; nothing here changes a pixel.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from sdpl.errors import UserError
from sdpl.preprocess.cpu import ImageSource

ChannelOrder = Literal["rgb", "bgr"]
OneImage = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | IO[bytes]
ImageInput = Any  # one of these, or an array or tensor, whose type does not tell how many images it holds

CONVERSIONS = {  # what makes an image of an array, by the kind of its numbers
    "f": "(255 * x).round().astype('uint8') if it spans 0..1",
    "b": "255 * x.astype('uint8')",
    "i": "x.astype('uint8')",
    "u": "x.astype('uint8')",
}


def is_one_image(images: object) -> bool:
    """Whether this is one image rather than many: a path, bytes, a picture, a file, an array of 2 or 3 axes. An array
    of paths, or a column of a table, is many."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | io.IOBase):
        return True
    if hasattr(images, "read"):
        return True
    return _is_array(images) and len(images.shape) <= 3 and not _is_column(images)  # type: ignore[attr-defined]


def sources(images: ImageInput | Iterable[ImageInput], channels: ChannelOrder) -> Iterator[ImageSource]:
    """One image or many, each as `as_source` gives it."""
    many = [images] if is_one_image(images) else images
    if not isinstance(many, Iterable):
        many = [many]  # as_source says what is wrong with it
    return (as_source(image, channels) for image in many)


def as_given(images: ImageInput | Iterable[ImageInput], results: Iterator[Any]) -> Any:
    """The one result of one image, an iterator's as they come, and a list of all others'."""
    if is_one_image(images):
        (result,) = results
        return result
    return results if isinstance(images, Iterator) else list(results)


def as_source(image: ImageInput, channels: ChannelOrder = "rgb") -> ImageSource:
    """A path, encoded bytes or a PIL image, from any of these or from:

    - an array or tensor uint8 [H,W,3] or [H,W] (grey); a tensor may also be [3,H,W], as torchvision reads images.
      Colours are RGB; OpenCV's arrays are BGR: say `channels="bgr"`.
    - a file that is open for reading bytes, read from its position.

    Raises UserError saying what is wrong with an array's type or shape and how to convert it.
    """
    if channels not in ("rgb", "bgr"):
        raise UserError(f"channels={channels!r}: expected 'rgb', or 'bgr' for images that OpenCV read.")
    if isinstance(image, str | Path | bytes | Image.Image):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, os.PathLike):
        return Path(os.fspath(image))
    if hasattr(image, "read"):
        return _read(image)
    if _is_array(image):
        return _from_array(image, channels)
    raise UserError(
        "expected an image (a path, bytes, a PIL image, an array uint8 [H,W,3], an open file), "
        f"got {type(image).__name__}."
    )


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_column(array: Any) -> bool:
    """Whether this is an array or a pandas Series of texts or objects, which may be images each."""
    return len(array.shape) == 1 and getattr(array.dtype, "kind", "") in "OSUT"


def _read(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise UserError(f"{getattr(file, 'name', 'the file')}: is open for text; open it with mode 'rb'.")
    return data


def _from_array(image: Any, channels: ChannelOrder) -> Image.Image:
    is_tensor = hasattr(image, "detach")  # torch's, without importing it
    array = np.asarray(image.detach().cpu() if is_tensor else image)
    if is_tensor and array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)  # [H,W,3]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [H,W]
    if array.ndim == 1 and array.dtype == np.uint8:
        raise UserError(f"an image array must be [H,W,3], got {array.size:,} bytes: for an encoded file, x.tobytes().")
    got = f"got {array.dtype} {list(array.shape)}"
    if array.dtype != np.uint8:
        fix = CONVERSIONS.get(array.dtype.kind, "as a list of images, list(x)")
        raise UserError(f"an image array must be uint8 0..255, {got}: convert it, {fix}.")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise UserError(f"an image array must be [H,W,3], {got}: x.transpose(1, 2, 0).")
    if array.ndim == 3 and array.shape[2] == 4:
        raise UserError(f"an image array must be [H,W,3], {got}: leave the alpha channel out, x[:, :, :3].")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise UserError(f"an image array must be RGB [H,W,3] or grey [H,W], {got}.")
    if channels == "bgr" and array.ndim == 3:
        array = array[:, :, ::-1]
    return Image.fromarray(np.ascontiguousarray(array))
