import hashlib

import numpy as np
import pytest
from PIL import Image

from sdpl.data.augment import VERSION, Augmentation
from sdpl.errors import UserError
from sdpl.preprocess import preprocess


@pytest.fixture
def photo(tmp_path):
    """Red grows to the right, green downwards: a pixel says where it came from."""
    y, x = np.mgrid[0:120, 0:200]
    pixels = np.stack([x * 255 / 199, y * 255 / 119, np.zeros_like(x)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_view_depends_on_its_number_and_the_seed_only(photo):
    views = Augmentation(flip=True, min_crop=0.5, seed=1)
    first = views.view(photo, 32, 3)
    views.view(photo, 32, 4)
    np.testing.assert_array_equal(views.view(photo, 32, 3), first)
    assert (views.view(photo, 32, 4) != first).any()
    assert (Augmentation(flip=True, min_crop=0.5, seed=2).view(photo, 32, 3) != first).any()
    assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)


def test_switched_off_it_is_preprocessing(photo):
    view = Augmentation(flip=False, min_crop=1.0, seed=0).view(photo, 32, 0)
    np.testing.assert_array_equal(view, preprocess(photo, 32))


def test_flips_about_every_other_time(photo):
    plain = preprocess(photo, 32)
    views = [Augmentation(flip=True, min_crop=1.0, seed=0).view(photo, 32, n) for n in range(40)]
    flipped = [np.array_equal(view, plain[:, ::-1]) for view in views]
    assert all(np.array_equal(view, plain) for view, is_flipped in zip(views, flipped, strict=True) if not is_flipped)
    assert 10 < sum(flipped) < 30


def test_crops_keep_their_share_of_the_image(photo):
    areas = []
    for number in range(40):
        view = Augmentation(flip=False, min_crop=0.4, seed=0).view(photo, 64, number).astype(float)
        width, height = np.ptp(view[..., 0]) / 255, np.ptp(view[..., 1]) / 255
        areas.append(width * height)
    assert min(areas) > 0.35
    assert max(areas) <= 1
    assert np.ptp(areas) > 0.2


def test_an_unreadable_image_is_named(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        Augmentation(flip=True, min_crop=0.5, seed=0).view(tmp_path / "gone.jpg", 32, 0)


# SHA-256 of what each VERSION makes of the photo
BITS = {1: "bbdc82c5ad59926d554fc34eea8e71cb66a653c19371b11ea130872e6e159f65"}


def test_other_views_are_another_version(photo):
    """Feature caches of views depend on VERSION: whoever changes a pixel raises it, and adds its hash."""
    views = Augmentation(flip=True, min_crop=0.4, seed=3)
    digest = hashlib.sha256(b"".join(views.view(photo, 48, number).tobytes() for number in range(12)))
    assert BITS[VERSION] == digest.hexdigest()
