"""Image bytes to uint8 [S,S,3]: the one definition for training, export, serving and measuring.

1. The header is read; format, sides and pixel count are checked before anything is decoded.
2. Decoding; a large JPEG is decoded at the smallest of its own scales that is still at least twice S.
3. EXIF orientation is applied. Transparent pixels lie on white. 16-bit grey is scaled to 8 bits.
4. RGB, resized to S x S with antialiased bicubic interpolation. The aspect ratio is not kept: every part
   of the picture counts in multi-label recognition, and the literature resizes the same way.

Normalisation (mean, standard deviation) is no part of this: it lies inside the exported graph.
"""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdpl.errors import UserError

VERSION = 1  # raise it whenever any image's pixels change: feature caches depend on it, and tests hold its bits
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_PIXELS = 80_000_000  # about 240 MB once decoded
MIN_SIDE = 8  # pixels; smaller pictures are tracking pixels and errors, not photos

ImageSource = str | Path | bytes | Image.Image


def load_image(source: ImageSource, decode_side: int | None = None) -> Image.Image:
    """An upright RGB picture from a path, encoded bytes, or a PIL image.

    `decode_side`: a JPEG may be decoded at a smaller scale whose sides are still at least this many pixels.
    Raises UserError naming the image and what is wrong with it.
    """
    name = "image" if isinstance(source, bytes | Image.Image) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked just below
            opened = _open(source)
        with opened as image:
            _check_sides(name, image)
            if decode_side is not None:
                image.draft(None, (decode_side, decode_side))
            image.load()
            if image.mode == "F":
                raise UserError(f"{name}: floating-point images have no defined range; save it with 8 or 16 bits.")
            return _to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such image.") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, not an image.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: has more than {MAX_PIXELS:,} pixels; make it smaller first.") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: is not an image that can be read ({', '.join(FORMATS)}).") from None
    except (
        OSError,
        EOFError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:  # what Pillow's decoders raise for damaged files
        raise UserError(f"{name}: is damaged or truncated ({error}).") from None


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


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _check_sides(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width}x{height} has more than {MAX_PIXELS:,} pixels; make it smaller first.")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{name}: {width}x{height} is too small; both sides need at least {MIN_SIDE} pixels.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(grey, 0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
