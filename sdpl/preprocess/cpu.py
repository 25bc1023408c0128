"""Image bytes to uint8 [S,S,3]: the one definition for training, export, serving and measuring.

1. The header is read; what decoding may cost is checked before anything is decoded (`sdpl.preprocess.bounds`).
2. Decoding; a large JPEG is decoded at the smallest of its own scales that is still at least twice S.
3. EXIF orientation is applied. Transparent pixels lie on white. 16-bit grey is scaled to 8 bits.
4. RGB, resized to S x S with antialiased bicubic interpolation. The aspect ratio is not kept: every part
   of the picture counts in multi-label recognition, and the literature resizes the same way.

Normalisation (mean, standard deviation) is no part of this: it lies inside the exported graph.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sdpl.errors import UserError
from sdpl.preprocess.bounds import FORMATS, max_pixels, opened, require_sides
from sdpl.text import no_file_name

VERSION = 1  # raise it whenever any image's pixels change: feature caches depend on it, and tests hold its bits
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
BAND = 1 << 20  # pixels that are converted at a time, where that takes more memory than the picture
UPRIGHT = {  # EXIF's orientations
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = str | Path | bytes | Image.Image


def load_image(source: ImageSource, decode_side: int | None = None) -> Image.Image:
    """An upright RGB picture from a path, encoded bytes, or a PIL image.

    `decode_side`: a JPEG may be decoded at a smaller scale whose sides are still at least this many pixels.
    Raises UserError naming the image and what is wrong with it.
    """
    name = "image" if isinstance(source, bytes | Image.Image) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes and damage; both are judged here
            image, orientation = _decode(source, name, decode_side)
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{name}: has more than {max_pixels():,} pixels; make it smaller first.") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: is not an image that can be read ({', '.join(FORMATS)}).") from None
    except UnicodeEncodeError as error:
        raise UserError(no_file_name(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise of any kind for damaged files
        raise UserError(f"{name}: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """What an error says of an image: the system's are about the file itself, others about what is in it."""
    match error:
        case FileNotFoundError():
            return "no such image"
        case IsADirectoryError():
            return "is a folder, not an image"
        case PermissionError():
            return "permission denied"
        case OSError(strerror=str(reason)):
            return f"cannot be read ({reason})"
    return f"is damaged or truncated ({str(error) or type(error).__name__})"


def preprocess(source: ImageSource, image_size: int) -> np.ndarray:
    """The model's input for one image: uint8 [S,S,3], S = `image_size`. Raises UserError as `load_image`."""
    return squash(load_image(source, decode_side=2 * image_size), image_size)


def squash(image: Image.Image, image_size: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """An upright RGB picture, or its part inside `box` (left, upper, right, lower in pixels), as uint8 [S,S,3]."""
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box))  # [S,S,3]


def find_images(paths: list[Path]) -> list[Path]:
    """The given files, and the images directly inside the given folders in the order of their names."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"{path}: no images in this folder ({', '.join(SUFFIXES)}).")
        found.extend(inside)
    return found


def _decode(source: ImageSource, name: str, decode_side: int | None) -> tuple[Image.Image, int]:
    """The picture as RGB, not yet upright, and its EXIF orientation."""
    if isinstance(source, Image.Image):  # a caller's, left as it is
        require_sides(source, name)
        return _loaded(source, name)
    with opened(source, name) as image:
        if decode_side is not None:
            image.draft(None, (decode_side, decode_side))
        return _loaded(image, name)


def _loaded(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    image.load()
    if image.mode == "F":
        raise UserError(f"{name}: floating-point images have no defined range; save it with 8 or 16 bits.")
    return _to_rgb(image), image.getexif().get(ExifTags.Base.Orientation, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        return _by_bands(image, "L", _eight_bits).convert("RGB")
    if image.has_transparency_data:
        return _by_bands(image, "RGB", _on_white)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(grey, 0, 65535) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _by_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture, converted a band of rows at a time: pixel for pixel the same, in less memory."""
    (width, height), rows = image.size, max(1, BAND // image.width)
    result = Image.new(mode, image.size)
    for top in range(0, height, rows):
        result.paste(convert(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return result
