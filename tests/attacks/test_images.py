"""Images that cost more than they look are refused before they are decoded, or read in bounded memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bomb_cost
import PIL
import pytest
from bombs import LARGEST, READ, REFUSED, animated_webp, chunk, png

from sdpl.errors import UserError
from sdpl.preprocess import allow_pixels, load_image
from sdpl.preprocess.bounds import MAX_PIXELS

EXTRA = 40 << 20  # bytes that Pillow takes for itself, whatever the picture
WEBP = 6  # times the RGB size: its decoder keeps two more pictures, so fewer pixels are allowed (`bounds.FORMAT_COST`)


def cost(content: bytes, folder: Path) -> dict[str, object]:
    """What reading it took, in a process of its own."""
    path = folder / "image"
    path.write_bytes(content)
    run = subprocess.run([sys.executable, bomb_cost.__file__, path], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_in_one_line(name, tmp_path):
    measured = cost(REFUSED[name](), tmp_path)
    assert measured["outcome"] != "read"
    assert measured["peak"] < 100 << 20


@pytest.mark.parametrize("name", READ)
def test_reading_takes_at_most_four_times_the_rgb_size(name, tmp_path):
    measured = cost(READ[name](2400), tmp_path)
    assert measured["outcome"] == "read"
    assert measured["peak"] < 4 * 3 * 2400**2 + EXTRA


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_the_largest_of_a_kind_takes_less_than_a_gigabyte(name, tmp_path):
    measured = cost(READ[name](LARGEST), tmp_path)
    assert measured["outcome"] == "read"
    assert measured["peak"] < 4 * 3 * MAX_PIXELS


@pytest.fixture
def allowed():
    """Changes how many pixels are allowed, for one test."""
    yield allow_pixels
    allow_pixels(MAX_PIXELS)


def test_animated_webp_may_have_fewer_pixels(tmp_path, allowed):
    content = animated_webp(1000)
    assert cost(content, tmp_path)["peak"] < WEBP * 3 * 1000**2 + EXTRA
    allowed(1_200_000)
    with pytest.raises(UserError, match="costs as much as 1,333,333 pixels in this kind of WEBP"):
        load_image(content)


def test_a_palette_image_without_a_palette_is_damaged():
    content = png(16, 16, 8, 3)
    without = content.replace(chunk(b"PLTE", bytes(3)), b"")
    assert len(without) < len(content)
    with pytest.raises(UserError, match=r"is damaged or truncated \(AssertionError\)"):
        load_image(without)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
def test_a_pipe_or_device_is_not_waited_for(path, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device or a pipe"):
        load_image(tmp_path / path)


def test_more_pixels_can_be_allowed(allowed):
    small = READ["EXIF-rotated"](100)
    allowed(9999)
    with pytest.raises(UserError, match="has more than 9,999 pixels"):
        load_image(small)
    allowed(10_000)
    load_image(small)
    with pytest.raises(UserError, match="--max-pixels 178956971: expected a number up to 178956970"):
        allow_pixels(178_956_971)


DAMAGED_TIFFS = """
import io, os, sys
import numpy as np
from PIL import Image
from sdpl.errors import UserError
from sdpl.preprocess import load_image
random, buffer, refused = np.random.RandomState(1), io.BytesIO(), 0
Image.fromarray(random.randint(0, 255, (64, 64, 3)).astype("uint8")).save(buffer, "TIFF", compression="tiff_lzw")
for _ in range(60):
    data = bytearray(buffer.getvalue())
    for _ in range(6):
        data[random.randint(len(data))] = random.randint(256)
    try:
        load_image(bytes(data))
    except UserError:
        refused += 1
print(refused)
"""


LIBRARIES = Path(PIL.__file__).parents[1] / "pillow.libs"


@pytest.mark.skipif(not list(LIBRARIES.glob("libtiff*")), reason="Pillow uses the system's libtiff")
def test_libtiff_writes_no_lines_of_its_own():
    run = subprocess.run([sys.executable, "-c", DAMAGED_TIFFS], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 10
    assert run.stderr == ""
