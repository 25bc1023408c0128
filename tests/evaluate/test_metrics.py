import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.metrics import (
    average_precision,
    f1_metrics,
    mean_average_precision,
    mean_average_precision_error,
    per_category_average_precision,
)

SCORES = np.array([[0.9, 0.2], [0.8, 0.7], [0.6, 0.6], [0.3, 0.1]])
LABELS = np.array([[1, -1], [-1, 1], [1, -1], [-1, -1]])


def test_average_precision_by_hand():
    # ranks: positive, negative, positive, negative -> (1/1 + 2/3) / 2
    assert average_precision(SCORES[:, 0], LABELS[:, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(SCORES[:, 1], LABELS[:, 1]) == 1.0


def test_voc2012_takes_the_best_precision_at_any_higher_recall():
    # ranks: -, +, +, -, + -> precisions 1/2, 2/3, 3/5; envelope 2/3, 2/3, 3/5
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([-1, 1, 1, -1, 1])
    assert average_precision(scores, labels) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(scores, labels, "voc2012") == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)


def test_unknown_labels_and_categories_without_positives_do_not_count():
    scores = np.vstack([SCORES, [[1.0, 1.0]]])
    labels = np.vstack([LABELS, [[0, 0]]])
    assert mean_average_precision(scores, labels) == mean_average_precision(SCORES, LABELS)
    labels[:, 1] = -1
    assert np.isnan(per_category_average_precision(scores, labels)[1])
    assert mean_average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)


def test_f1_by_hand():
    # predicted at 0.5: (0,0), (1,0), (1,1), (2,0), (2,1); true: (0,0), (2,0), (1,1)
    result = f1_metrics(SCORES, LABELS, 0.5)
    assert result["OP"] == pytest.approx(3 / 5)
    assert result["OR"] == 1.0
    assert result["OF1"] == pytest.approx(2 * 0.6 / 1.6)
    assert result["CP"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["CR"] == 1.0
    assert result["CF1"] == pytest.approx(2 * result["CP"] / (1 + result["CP"]))


def test_top_k_takes_the_k_best_of_each_image():
    result = f1_metrics(SCORES, LABELS, top_k=1)
    # category 0 is best in every image (in image 2 by a tie that the first wins): right in images 0 and 2
    assert result["OP"] == pytest.approx(2 / 4)
    assert result["OR"] == pytest.approx(2 / 3)


def test_thresholds_by_category_and_their_edge():
    assert f1_metrics(SCORES, LABELS, np.array([0.6, 0.7]))["OP"] == pytest.approx(3 / 4)


def test_unknown_labels_do_not_count_in_f1():
    labels = LABELS.copy()
    labels[1, 0] = 0  # a false positive becomes unknown
    assert f1_metrics(SCORES, labels, 0.5)["OP"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("categories", [1, 7])
def test_precision_and_recall_are_those_of_scikit_learn(categories):
    rng = np.random.RandomState(0)
    scores, labels = rng.uniform(size=(30, categories)), rng.choice([-1, 0, 1], size=(30, categories))
    labels[:, 0] = np.where(labels[:, 0] > 0, 0, labels[:, 0])  # a category without a positive
    columns = [(labels[known, c] > 0, scores[known, c] >= 0.5) for c, known in enumerate((labels != 0).T)]
    result = f1_metrics(scores, labels)
    for each, overall, metric in (("CP", "OP", precision_score), ("CR", "OR", recall_score)):
        assert result[each] == pytest.approx(np.mean([metric(*column, zero_division=0) for column in columns]))
        assert result[overall] == pytest.approx(
            metric(*map(np.concatenate, zip(*columns, strict=True)), zero_division=0)
        )


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected scores and labels \[N,C\]"):
        mean_average_precision(SCORES, LABELS[:2])


def test_calibration_of_perfect_and_of_overconfident_scores():
    rng = np.random.RandomState(0)
    scores = rng.uniform(size=(20_000, 2))
    labels = np.where(rng.uniform(size=scores.shape) < scores, 1, -1)
    assert calibration(scores, labels).error < 0.02
    assert calibration(np.full((100, 1), 0.9), np.where(np.arange(100)[:, None] < 60, 1, -1)).error == pytest.approx(
        0.3
    )


def test_calibration_counts_known_labels_only():
    result = calibration(np.array([[0.0, 1.0, 0.5]]), np.array([[-1, 1, 0]]), bins=4)
    assert result.count.tolist() == [1, 0, 0, 1]
    assert result.error == 0


def test_voc2012_does_not_depend_on_the_order_of_ties():
    labels = np.array([1, -1, 1, -1, -1, 1, -1, -1])
    assert average_precision(np.full(8, 0.3), labels, "voc2012") == pytest.approx(3 / 8)  # the base rate
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.2, 0.2, 0.1])
    expected = average_precision(scores, labels, "voc2012")
    for seed in range(5):
        order = np.random.RandomState(seed).permutation(8)
        assert average_precision(scores[order], labels[order], "voc2012") == expected
    assert expected >= average_precision(scores, labels)


def test_the_error_of_a_mean_average_precision_covers_the_bootstrap():
    """The bound is above what resampling the images gives, but no more than a few times."""
    rng = np.random.RandomState(0)
    labels = np.where(rng.random_sample((60, 10)) < 0.25, 1, -1)
    scores = labels + 1.5 * rng.normal(size=labels.shape)
    rows = (rng.randint(0, 60, 60) for _ in range(200))
    deviation = np.std([mean_average_precision(scores[r], labels[r]) for r in rows])
    error = mean_average_precision_error(labels)
    assert deviation < error < 4 * deviation
    assert mean_average_precision_error(np.repeat(labels, 4, axis=0)) == pytest.approx(error / 2)
    assert np.isnan(mean_average_precision_error(np.zeros((3, 2))))
