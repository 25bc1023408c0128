"""Average precision and thresholds of many categories at once, against scikit-learn's of one category at a time."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from sdpl.evaluate import curves
from sdpl.evaluate.metrics import per_category_average_precision
from sdpl.evaluate.thresholds import fit_thresholds


def some(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, rounded in every second case so that there are ties, and labels in any proportion, unknown ones too."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 60), rng.integers(1, 9)
    scores = rng.random(shape).astype((np.float32, np.float64)[seed // 2 % 2])
    labels = rng.choice([-1, 0, 1], shape, p=rng.dirichlet([1, 1, 1]))
    return (np.round(scores, 1) if seed % 2 else scores), labels


def area_of_envelope(positive: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return -(np.diff(recall) * np.maximum.accumulate(precision)[:-1]).sum()


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize(
    ("interpolation", "reference"), [("none", average_precision_score), ("voc2012", area_of_envelope)]
)
def test_average_precision_is_that_of_scikit_learn(monkeypatch, block, interpolation, reference):
    monkeypatch.setattr(curves, "BLOCK", block)
    for seed in range(40):
        scores, labels = some(seed)
        aps = per_category_average_precision(scores, labels, interpolation)
        for ap, column, known in zip(aps, scores.T, labels.T, strict=True):
            if (known > 0).any():
                expected = reference(known[known != 0] > 0, column[known != 0])
                assert ap == pytest.approx(expected, abs=1e-12)
            else:
                assert np.isnan(ap)


def test_a_threshold_is_the_lowest_of_those_with_the_best_f1():
    for seed in range(40):
        scores, labels = some(seed)
        for fitted, column, known in zip(fit_thresholds(scores, labels), scores.T, labels.T, strict=True):
            column, positive = column[known != 0], known[known != 0] > 0
            if not positive.any() or positive.all():
                assert fitted == 0.5
                continue
            cuts = np.unique(column)
            f1 = [
                Fraction(2 * int(positive[column >= c].sum()), int((column >= c).sum() + positive.sum())) for c in cuts
            ]
            lowest = f1.index(max(f1))
            assert fitted == (cuts[lowest] + (cuts[lowest - 1] if lowest else 0)) / 2


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_where_a_label_is_known(wrong):
    scores, labels = np.array([[0.1, wrong], [0.2, 0.3]]), np.array([[1, 0], [-1, 1]])
    assert per_category_average_precision(scores, labels).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="NaN or infinity"):
        per_category_average_precision(scores, np.abs(labels) + 1)


def test_no_images_and_no_categories():
    assert np.isnan(per_category_average_precision(np.zeros((0, 3)), np.zeros((0, 3)))).all()
    assert per_category_average_precision(np.zeros((3, 0)), np.zeros((3, 0))).shape == (0,)
    assert fit_thresholds(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == [0.5, 0.5]
