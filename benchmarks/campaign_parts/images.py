"""Damaged images of every format through `preprocess`: a picture or one line, in bounded time and memory."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from sdpl.preprocess import preprocess

from .mutate import mutated

SIDES = ((16, 16), (33, 21), (64, 48))


def make_seeds() -> list[bytes]:
    """Small valid images: every format, and what its decoder does differently (modes, compressions, animation)."""
    random = np.random.default_rng(0)
    found: list[bytes] = []
    for width, height in SIDES:
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        rgba = Image.fromarray(pixels)
        rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
        deep = Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
        exif = Image.Exif()
        exif[0x0112] = 6
        frames = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
        for image, format, options in (
            *((image, "JPEG", {"progressive": p, "exif": exif}) for image in (rgb, grey) for p in (False, True)),
            (rgba.convert("CMYK"), "JPEG", {"icc_profile": random.bytes(300)}),
            *((image, "PNG", {}) for image in (rgb, rgba, grey, palette, deep, grey.convert("LA"), grey.convert("1"))),
            (palette, "PNG", {"transparency": 3, "exif": exif}),
            (rgb, "PNG", frames),
            *((rgba, "WEBP", {"lossless": lossless, "exif": exif}) for lossless in (False, True)),
            (rgb, "WEBP", frames),
            *((image, "GIF", frames) for image in (palette, grey)),
            *((rgb, "TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
            *((image, "TIFF", {"exif": exif}) for image in (rgba, grey, deep, palette, grey.convert("1"))),
            (grey.convert("1"), "TIFF", {"compression": "group4"}),
            *((image, "BMP", {}) for image in (rgb, rgba, palette, grey.convert("1"))),
            *((image, "PPM", {}) for image in (rgb, grey, deep, grey.convert("1"))),
        ):
            stream = io.BytesIO()
            image.save(stream, format, **options)
            found.append(stream.getvalue())
        numbers = b" ".join(b"%d" % value for value in pixels[..., :3].ravel())
        found.append(b"P3 %d %d 255\n" % (width, height) + numbers)
        found.append(b"P6 %d %d 1000\n" % (width, height) + pixels[..., :3].astype(">u2").tobytes())
    return found


def case(seeds: list[bytes], random: np.random.Generator) -> bytes:
    """One damaged image."""
    return mutated(seeds[int(random.integers(len(seeds)))], seeds, random)


def attack(content: bytes) -> None:
    """Raises UserError, or returns after a picture was made."""
    made = preprocess(content, 32)
    assert made.shape == (32, 32, 3)
    assert made.dtype == np.uint8


def attack_case(seeds: list[bytes], random: np.random.Generator) -> Callable[[], None]:
    content = case(seeds, random)
    return lambda: attack(content)
