"""Image bytes to the model's input: one definition for training, export, serving and measuring."""

from sdpl.preprocess.bounds import FORMATS, MAX_PIXELS, MIN_SIDE, allow_pixels
from sdpl.preprocess.cpu import (
    SUFFIXES,
    VERSION,
    ImageSource,
    find_images,
    load_image,
    preprocess,
    squash,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "SUFFIXES",
    "VERSION",
    "ImageSource",
    "allow_pixels",
    "find_images",
    "load_image",
    "preprocess",
    "squash",
]
