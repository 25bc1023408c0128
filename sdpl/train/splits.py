"""The splits that a configuration names: read, masked, and held out."""

import math
from pathlib import Path

import numpy as np

from sdpl.data.check import read_named
from sdpl.data.formats import read_labels
from sdpl.data.images import LabelledImages
from sdpl.data.masks import mask_labels
from sdpl.errors import UserError
from sdpl.train.config import Config, Split
from sdpl.train.config_files import read_config


def load_data(config: Config) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation data. Labels of the training set are masked before any image is held out, so a
    held-out validation split knows no more labels than the user would have."""
    data = config.data
    meaning = None if data.values is None else data.values.meaning
    full = read_split(data.train, data.categories, meaning)
    train = full.with_labels(mask_labels(full.labels, data.known_proportion, data.mask_seed))
    if data.val is not None:
        return train, read_split(data.val, train.categories, meaning)
    order = np.random.RandomState(data.mask_seed).permutation(len(train))
    held_out = math.ceil(data.val_fraction * len(train))
    if held_out >= len(train):
        raise UserError(f"{len(train)} images are too few to hold out {data.val_fraction:.0%} of them; name data.val.")
    return train.subset(sorted(order[held_out:])), train.subset(sorted(order[:held_out]))


def read_split(
    split: Split, categories: tuple[str, ...] | None, values: dict[float, int] | None = None
) -> LabelledImages:
    """The labelled images of one split, with the given categories or, without, the file's own; values: of tables."""
    return read_labels(split.annotations, split.images, split.format, categories, values=values)


def configured_splits(path: Path) -> dict[str, LabelledImages]:
    """The splits of a training configuration (YAML) by the names of their label files, with all their labels."""
    data = read_config(path).data
    named = [(s.annotations, s.images, s.format) for s in (data.train, data.val) if s is not None]
    return read_named(named, data.categories, None if data.values is None else data.values.meaning)
