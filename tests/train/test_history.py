"""What a run remembers of its epochs, over a checkpoint and of an older sdpl's."""

import torch

from sdpl.train.history import History
from sdpl.train.log import EpochLog

CATEGORIES = ("a", "b")


def two_epochs():
    history = History(CATEGORIES)
    history.add(EpochLog(1, 0.1, 2.0, 40.0, 0, 1.5), {"a": 40.0, "b": None})
    history.add(EpochLog(2, 0.1, 1.0, 60.0, 0, 1.5), {"a": 70.0, "b": 50.0})
    return history


def test_it_comes_back_from_its_state():
    history, other = two_epochs(), History(CATEGORIES)
    other.load_state(history.state())
    assert other.losses == [2.0, 1.0]
    assert other.epochs == history.epochs
    assert other.ap_by_epoch() == [{"a": 40.0, "b": None}, {"a": 70.0, "b": 50.0}]
    other.add(EpochLog(3, 0.1, 0.5, 70.0, 0, 1.5), {"a": 80.0, "b": 60.0})
    assert [row["epoch"] for row in other.epochs] == [1, 2, 3]
    assert other.ap.shape == (3, 2)


def test_epochs_of_before_ap_was_kept_have_none():
    old, other = {"history": two_epochs().epochs}, History(CATEGORIES)
    other.load_state(old)
    other.add(EpochLog(3, 0.1, 0.5, 70.0, 0, 1.5), {"a": 80.0, "b": 60.0})
    assert other.ap_by_epoch() == [{}, {}, {"a": 80.0, "b": 60.0}]


def test_ap_of_other_categories_is_not_taken():
    other = History(CATEGORIES)
    other.load_state({**two_epochs().state(), "ap_history": torch.zeros(2, 5)})
    assert other.ap_by_epoch() == [{}, {}]
