import numpy as np
import pytest

from sdpl.evaluate.metrics import f1_metrics
from sdpl.evaluate.thresholds import fit_thresholds


def test_lies_half_way_between_the_scores_that_it_parts():
    scores = np.array([[0.1], [0.2], [0.4], [0.8]])
    assert fit_thresholds(scores, np.array([[-1], [-1], [1], [1]])) == pytest.approx([0.3])


def test_no_other_threshold_has_a_better_f1():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((200, 3)) < 0.3, 1, -1)
    scores = rng.random((200, 3)) * 0.6 + 0.2 * (labels > 0)
    fitted = fit_thresholds(scores, labels)
    for c in range(3):
        column = (scores[:, c : c + 1], labels[:, c : c + 1])
        best = max(f1_metrics(*column, cut)["CF1"] for cut in scores[:, c])
        assert f1_metrics(*column, fitted[c])["CF1"] == pytest.approx(best)


def test_unknown_labels_count_nowhere():
    scores, labels = np.array([[0.1], [0.4], [0.5], [0.9]]), np.array([[-1], [0], [0], [1]])
    assert fit_thresholds(scores, labels) == pytest.approx([0.5])
    assert fit_thresholds(np.array([[0.6], [0.7]]), np.array([[-1], [1]])) == pytest.approx([0.65])


@pytest.mark.parametrize("column", [[0, 0, 0], [1, 1, 0], [-1, 0, -1]])
def test_without_both_kinds_of_label_it_stays_a_half(column):
    assert fit_thresholds(np.array([[0.1], [0.2], [0.3]]), np.array(column)[:, None]) == pytest.approx([0.5])
