import numpy as np
import pytest

from sdpl.data.masks import mask_labels

LABELS = np.where(np.random.default_rng(0).random((200, 10)) < 0.2, 1, -1).astype(np.int8)


def test_is_the_published_protocol():
    state = np.random.get_state()
    np.random.seed(7)
    expected = np.where(np.random.random_sample(LABELS.shape) < 0.3, LABELS, 0)
    np.random.set_state(state)
    np.testing.assert_array_equal(mask_labels(LABELS, 0.3, seed=7), expected)


def test_leaves_global_state_alone():
    before = np.random.get_state()[1].copy()
    mask_labels(LABELS, 0.3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_seeds_and_proportions():
    assert (mask_labels(LABELS, 1.0) == LABELS).all()
    assert (mask_labels(LABELS, 0.5, seed=0) != mask_labels(LABELS, 0.5, seed=1)).any()
    assert (mask_labels(LABELS, 0.1) != 0).mean() == pytest.approx(0.1, abs=0.02)


def test_more_known_labels_contain_fewer():
    few, many = mask_labels(LABELS, 0.2), mask_labels(LABELS, 0.6)
    assert (many[few != 0] == few[few != 0]).all()


@pytest.mark.parametrize("proportion", [0, -0.1, 1.01])
def test_a_proportion_outside_of_0_and_1_is_named(proportion):
    with pytest.raises(ValueError, match=f"got {proportion}"):
        mask_labels(LABELS, proportion)
