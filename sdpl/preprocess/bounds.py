"""What one image may cost: the boundary that encoded images of any origin pass before anything is decoded.

Bounded are pixels, and for formats that cost more per pixel fewer of them; the encoded bytes; and how often Pillow
reads from the file, which bounds its loops over markers and chunks. Together they hold an image within seconds, and
within four times the size of the largest picture as RGB.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image

from sdpl.errors import UserError
from sdpl.preprocess.tiff import silence_libtiff

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 80_000_000  # about 240 MB once decoded
MOST_PIXELS = 178_956_970  # that --max-pixels may allow: beyond, Pillow itself refuses
MIN_SIDE = 8  # pixels; smaller pictures are tracking pixels and errors, not photos
MAX_SIDE = 65_535  # pixels; resizing a strip of 8 x 10,000,000 would take 18 GB between its two passes
MAX_OVERHEAD = 32 << 20  # encoded bytes beside the pixels: profiles, thumbnails, a phone's short video
BYTES_PER_PIXEL = 8  # encoded, at most: four channels of 16 bits
HEADER_READS, READS = 10_000, 300_000  # of Pillow, before and while it decodes; a photo needs some hundreds
SCANS = 20  # of a JPEG at full size: libjpeg writes up to 18, and each costs nearly as much as decoding the picture
CODEC_COST = {"ppm_plain": 40, "ppm": 40, "bmp_rle": 4}  # decoded by Python, at 0.3 to 2 microseconds a pixel
FORMAT_COST = {"WEBP": 4 / 3}  # its decoder keeps two more pictures

_max_pixels = MAX_PIXELS


def allow_pixels(count: int) -> None:
    """Let this process read images of up to `count` pixels, and cost in proportion. Raises UserError above what can be.

    Memory for one image is up to 12 bytes a pixel, in each decoding thread.
    """
    global _max_pixels
    if not 1 <= count <= MOST_PIXELS:
        raise UserError(f"--max-pixels {count}: expected a number up to {MOST_PIXELS}.")
    _max_pixels = count


def max_pixels() -> int:
    return _max_pixels


@contextmanager
def opened(source: str | Path | bytes, name: str) -> Iterator[Image.Image]:
    """An image whose header was read and found within the bounds. What decoding it may read is bounded too.

    Raises UserError, or what Pillow raises for files that are damaged.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(source) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size > MAX_OVERHEAD + BYTES_PER_PIXEL * _max_pixels:
            raise UserError(f"{name}: has {size:,} bytes, more than an image may have; make it smaller first.")
        stream.seek(0)
        reader = _Reader(stream, HEADER_READS, name)
        with Image.open(reader, formats=FORMATS) as image:
            if image.format == "TIFF":
                silence_libtiff()
            _require_bounded(image, name, size, stream)
            reader.left = READS
            yield image


def require_sides(image: Image.Image, name: str) -> None:
    """Raise UserError for a picture with too many pixels, or too few."""
    width, height = image.size
    if width * height > _max_pixels:
        raise UserError(f"{name}: {width}x{height} has more than {_max_pixels:,} pixels; make it smaller first.")
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{name}: {width}x{height} has a side of more than {MAX_SIDE:,} pixels; make it smaller first.")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{name}: {width}x{height} is too small; both sides need at least {MIN_SIDE} pixels.")


def _require_bounded(image: Image.Image, name: str, size: int, stream: IO[bytes]) -> None:
    require_sides(image, name)
    width, height = image.size
    if size > MAX_OVERHEAD + BYTES_PER_PIXEL * width * height:
        raise UserError(
            f"{name}: has {size:,} bytes for {width}x{height} pixels; save it again without what else is in it."
        )
    tiles = getattr(image, "tile", None)  # of files: what decodes each part
    codec = tiles[0][0] if tiles else ""
    cost = CODEC_COST.get(codec, 1) * FORMAT_COST.get(image.format or "", 1)
    if image.format in ("JPEG", "MPO"):
        cost = max(cost, _scans(stream) / SCANS)
    if width * height * cost > _max_pixels:
        raise UserError(
            f"{name}: {width}x{height} costs as much as {width * height * cost:,.0f} pixels in this kind of "
            f"{image.format}, more than {_max_pixels:,}; make it smaller or save it as PNG or plain JPEG."
        )


def _scans(stream: IO[bytes]) -> int:
    """How many scans a JPEG may have: its start-of-scan markers, those of thumbnails and chance included."""
    place, count, last = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(1 << 20):
        count += (last + block).count(b"\xff\xda")
        last = block[-1:] if block.endswith(b"\xff") else b""
    stream.seek(place)
    return count


def _open_file(path: str | Path) -> IO[bytes]:
    """A regular file; a pipe or a device, which may never end, is not even waited for."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    stream = open(path, "rb", opener=opener)  # noqa: SIM115, it is handed on
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise UserError(f"{path}: is a device or a pipe, not an image file.")
    return stream


class _Reader:
    """A file that may be read only so often."""

    def __init__(self, stream: IO[bytes], left: int, name: str):
        self._stream, self.left, self._name = stream, left, name

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise UserError(f"{self._name}: has more parts than an image may have; save it again.")
        return self._stream.read(size)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)
