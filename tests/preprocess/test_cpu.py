"""Every kind of image a user may have: what must work, and what must be refused before it is decoded."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sdpl.errors import UserError
from sdpl.preprocess import MAX_PIXELS, VERSION, find_images, load_image, preprocess

RED, BLUE = (220, 30, 30), (30, 30, 220)


def two_halves(width=60, height=40) -> Image.Image:
    """Red above, blue below: shows orientation and colours."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, height // 2, width, height))
    return image


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_red_above_blue(result: np.ndarray):
    assert result.shape == (32, 32, 3)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result[4].mean(0), RED, atol=12)
    np.testing.assert_allclose(result[-4].mean(0), BLUE, atol=12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(kind):
    assert_red_above_blue(preprocess(encoded(two_halves(), kind), 32))


def test_path_bytes_and_pil_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    two_halves().save(path)
    results = [preprocess(source, 32) for source in (path, str(path), path.read_bytes(), two_halves())]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_a_given_pil_image_is_not_changed():
    image = two_halves()
    preprocess(image, 32)
    assert image.size == (60, 40)
    assert image.mode == "RGB"


def test_cmyk():
    assert_red_above_blue(preprocess(encoded(two_halves().convert("CMYK"), "JPEG"), 32))


def test_palette():
    assert_red_above_blue(preprocess(encoded(two_halves().quantize(8)), 32))


def test_transparent_parts_are_white():
    image = two_halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 30, 40))
    result = preprocess(encoded(image), 32)
    np.testing.assert_array_equal(result[:, 4], 255)
    np.testing.assert_allclose(result[4, -4], RED, atol=12)


def test_palette_with_a_transparent_colour():
    image = two_halves().quantize(8)
    result = preprocess(encoded(image, transparency=image.getpixel((0, 0))), 32)
    np.testing.assert_array_equal(result[4], 255)
    np.testing.assert_allclose(result[-4].mean(0), BLUE, atol=12)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey(mode):
    result = preprocess(encoded(two_halves().convert(mode)), 32)
    assert (result[..., 0] == result[..., 1]).all()


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    result = preprocess(encoded(Image.fromarray(values)), 32)
    assert 110 < result.mean() < 145
    assert result[-1].mean() > 240


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied(orientation):
    stored = {  # how a camera stores the upright picture for each orientation
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    image = two_halves()
    for step in stored[orientation]:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_red_above_blue(preprocess(encoded(image, "JPEG", exif=exif, quality=95), 32))


def test_large_jpeg_is_decoded_small_with_nearly_the_same_result():
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    jpeg = encoded(image, "JPEG", quality=95)
    assert load_image(jpeg, decode_side=64).width < 1600
    whole = np.asarray(load_image(jpeg).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(preprocess(jpeg, 32).astype(int) - whole).max() <= 3


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and holds nothing: only refusing it before decoding names the size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [30_000, 9_500])
def test_too_many_pixels_are_refused_before_decoding(side):
    with pytest.raises(UserError, match=f"more than {MAX_PIXELS:,} pixels; make it smaller"):
        preprocess(png_header(side, side), 32)


@pytest.mark.parametrize("size", [(1, 1), (7, 100)])
def test_too_small(size):
    with pytest.raises(UserError, match="is too small; both sides need at least 8 pixels"):
        preprocess(encoded(Image.new("RGB", size)), 32)


def test_missing_folder_truncated_and_foreign_files_are_named(tmp_path):
    photo = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for name, content, message in (
        ("cut.jpg", photo[: len(photo) // 2], "is damaged or truncated"),
        ("text.jpg", b"not an image", "is not an image that can be read"),
        ("empty.png", b"", "is not an image that can be read"),
        ("cut.png", encoded(two_halves())[:60], "is damaged or truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: {message}"):
            preprocess(tmp_path / name, 32)
    with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
        preprocess(tmp_path / "gone.jpg", 32)
    with pytest.raises(UserError, match="is a folder, not an image"):
        preprocess(tmp_path, 32)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(UserError, match="is not an image that can be read"):
        preprocess(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", 32)


def test_find_images_lists_folders_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_images([tmp_path])] == ["a.PNG", "b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        find_images([tmp_path / "empty"])


# SHA-256 of what each VERSION makes of fixed images
BITS = {1: "56dabc41ec8625a280b8e63612a81e7b72e8017159a7e781c611691691e2ca13"}


def test_other_pixels_are_another_version():
    """Feature caches depend on VERSION, not on the source: whoever changes a pixel raises it, and adds its hash."""
    noise = np.random.RandomState(0).randint(0, 256, (61, 83, 4), np.uint8)
    grey16 = np.random.RandomState(1).randint(0, 65536, (40, 40)).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        encoded(Image.fromarray(noise[..., :3])),
        encoded(Image.fromarray(noise)),  # transparent
        encoded(Image.fromarray(noise[..., 0])),  # grey
        encoded(Image.fromarray(grey16)),
        encoded(Image.fromarray(noise[..., :3]), exif=turned),
        encoded(Image.fromarray(noise[:40, :40, :3]), "BMP"),
    ]
    digest = hashlib.sha256(b"".join(preprocess(image, size).tobytes() for image in images for size in (32, 224)))
    photo = encoded(two_halves(1600, 900), "JPEG")
    digest.update(repr([load_image(photo, decode_side=side).size for side in (64, 448, 896)]).encode())
    assert BITS[VERSION] == digest.hexdigest()


def test_what_the_system_says_of_a_file_is_no_damage(tmp_path):
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match=r"loop.jpg: cannot be read \(Too many levels of symbolic links\)\."):
        preprocess(loop, 8)
