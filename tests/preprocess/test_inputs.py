"""One image or many, of whatever a person has in hand; what cannot be an image is named with its fix."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sdpl.errors import UserError
from sdpl.preprocess import load_image
from sdpl.preprocess.inputs import as_source, is_one_image

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)  # [H,W,3]


def pixels(image, **options):
    return np.asarray(load_image(as_source(image, **options)))


def encoded():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer


def test_every_form_of_an_image_is_the_same_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded().getvalue())
    forms = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.fromarray(PIXELS), PIXELS]
    forms += [torch.from_numpy(PIXELS), torch.from_numpy(PIXELS).permute(2, 0, 1), io.BytesIO(path.read_bytes())]
    for form in forms:
        assert is_one_image(form), type(form)
        np.testing.assert_array_equal(pixels(form), PIXELS)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(pixels(file), PIXELS)


def test_opencv_s_order_is_said_and_grey_has_one_channel():
    np.testing.assert_array_equal(pixels(PIXELS[:, :, ::-1], channels="bgr"), PIXELS)
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(pixels(grey), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(pixels(grey[:, :, None]), pixels(grey))
    with pytest.raises(UserError, match=r"channels='BGR': expected 'rgb', or 'bgr'"):
        as_source(PIXELS, "BGR")


def test_many_images_are_not_one():
    for many in (["a.jpg"], ("a.jpg",), iter(["a.jpg"]), np.stack([PIXELS] * 2), {"a.jpg": 1}):
        assert not is_one_image(many)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS / 255, r"must be uint8 0..255, got float64 \[20, 30, 3\]: convert it, \(255 \* x\).round"),
        (PIXELS.astype(np.int64), r"must be uint8 0..255, got int64 \[20, 30, 3\]: convert it, x.astype"),
        (PIXELS > 127, r"got bool \[20, 30, 3\]: convert it, 255 \* x.astype"),
        (np.array([["a.jpg"]]), r"got <U5 \[1, 1\]: convert it, as a list of images, list\(x\)"),
        (PIXELS.ravel(), r"got 1,800 bytes: for an encoded file, x.tobytes\(\)"),
        (PIXELS.transpose(2, 0, 1), r"must be \[H,W,3\], got uint8 \[3, 20, 30\]: x.transpose\(1, 2, 0\)"),
        (np.dstack([PIXELS, PIXELS[:, :, 0]]), r"got uint8 \[20, 30, 4\]: leave the alpha channel out, x\[:, :, :3\]"),
        (PIXELS[:, :, :2], r"must be RGB \[H,W,3\] or grey \[H,W\], got uint8 \[20, 30, 2\]"),
        (PIXELS[:0], r"got uint8 \[0, 30, 3\]"),
        (io.StringIO("no bytes"), "is open for text; open it with mode 'rb'"),
        (7, "expected an image .*, got int"),
        (None, "expected an image .*, got NoneType"),
    ],
)
def test_what_is_no_image_is_named_with_its_fix(image, message):
    with pytest.raises(UserError, match=message):
        as_source(image)
