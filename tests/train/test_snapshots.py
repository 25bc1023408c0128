"""Where the model looks, as a checkpoint keeps it: how often, and in which images."""

import numpy as np
import torch

from sdpl.data.images import LabelledImages
from sdpl.train.snapshots import opened, shown_cases, snapshot_epochs


def split(positives, categories):
    labels = np.full((max(positives, 1) + 2, categories), -1, np.int8)
    labels[:positives] = 1
    return LabelledImages(tuple(f"{i}.jpg" for i in range(len(labels))), labels, tuple(map(str, range(categories))))


def test_a_handful_of_snapshots_whatever_the_length():
    assert snapshot_epochs(1) == {0, 1}
    assert {0, 1, 100} < snapshot_epochs(100)
    assert len(snapshot_epochs(1000)) == 5


def test_cases_are_known_positives_of_images_spread_over_the_split():
    data = split(100, categories=5)
    cases = shown_cases(data)
    assert [row for row, _ in cases] == [0, 0, 33, 33, 66, 66, 99, 99]
    assert all(data.labels[case] > 0 for case in cases)
    assert shown_cases(split(0, categories=5)) == []
    taken = {"epoch": 1, "cases": [[0, 0], [9999, 0]], "maps": torch.ones(2, 2, 3)}
    (seen,) = opened([taken], data)
    assert (seen.cases, seen.maps.shape) == (((0, 0),), (1, 2, 3))
