"""Images that are legal enough to be decoded and cost far more than they look."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, *extra: bytes) -> bytes:
    """A PNG of zeros, of any size, in few bytes."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * bits + 7) // 8
    squeeze = zlib.compressobj(1)
    packed = b"".join(squeeze.compress(bytes(row)) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + b"".join(extra)
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def with_markers(count: int, size: int) -> bytes:
    content = encoded(Image.new("RGB", (64, 64)), "JPEG")
    marker = b"\xff\xe5" + struct.pack(">H", size + 2) + bytes(size)
    return content[:2] + marker * count + content[2:]


def rle_bmp(width: int, height: int) -> bytes:
    packed = (b"\xff\x00" * (width // 255) + bytes([max(1, width % 255), 0]) + b"\0\0") * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(packed), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(packed), 0, 0, 1078) + header + bytes(1024) + packed


def animated(format: str, side: int) -> bytes:
    frames = [Image.new("RGBA", (side, side), (i, 0, 0, 128)) for i in range(3)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def rotated(side: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (side, side)), "JPEG", exif=exif)


def deep_tiff(width: int, height: int) -> bytes:
    return encoded(Image.fromarray(np.zeros((height, width), np.uint16)), "TIFF", compression="tiff_lzw")


def animated_webp(side: int) -> bytes:
    return animated("WEBP", side)


def jpeg(mode: str, side: int) -> bytes:
    return encoded(Image.new(mode, (side, side)), "JPEG", progressive=True, subsampling=0)


REFUSED: dict[str, Callable[[], bytes]] = {
    "a strip": lambda: png(8, 70_000, 8, 2),
    "a billion pixels": lambda: png(31_623, 31_623, 1, 0),
    "2,000 scans": lambda: many_scans(2048, 2000),
    "500,000 markers": lambda: with_markers(500_000, 0),
    "65 MB of markers": lambda: with_markers(1000, 65_000),
    "200,000 chunks": lambda: png(64, 64, 8, 2, chunk(b"tEXt", b"a\0b") * 200_000),
    "a text of 100 MB unpacked": lambda: png(64, 64, 8, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "ASCII PPM of 36 million pixels": lambda: b"P3 6000 6000 255\n" + b"1 " * 20_000_000,
    "PPM of an odd maximum": lambda: b"P6 6000 6000 254\n" + bytes(108_000_000),
    "BMP of runs": lambda: rle_bmp(6000, 6000),
}
READ: dict[str, Callable[[int], bytes]] = {  # side -> image; all of them cost more than plain RGB
    "RGBA": lambda side: png(side, side, 8, 6),
    "16-bit RGBA": lambda side: png(side, side, 16, 6),
    "16-bit grey": lambda side: png(side, side, 16, 0),
    "grey with alpha": lambda side: png(side, side, 8, 4),
    "EXIF-rotated": rotated,
    "progressive": lambda side: jpeg("RGB", side),
    "CMYK": lambda side: jpeg("CMYK", side),
    "16-bit TIFF": lambda side: deep_tiff(side, side),
    "animated GIF": lambda side: animated("GIF", side),
}
LARGEST = 8944  # side of 80 million pixels, just below the limit
