import numpy as np
import pytest

from sdpl.bundle import to_scores
from sdpl.manifest import Accuracy
from sdpl.verification import Answers, answer_all, compare, describe, failure

SCORES = np.random.default_rng(0).random((6, 10)).astype(np.float32)
ABOUT = {"scored_by": "target", "environment": {}}


def compared(expected, actual, tolerance, **about):
    return compare(Answers(expected), Answers(actual), tolerance, **about)


def test_equal_scores():
    result = compared(SCORES, SCORES.copy(), 1e-4, **ABOUT)
    assert (result.max_score_difference, result.mean_score_difference, result.same_top_k) == (0, 0, 1)
    assert (result.images, result.top_k) == (6, 5)
    assert failure(result, 0) is None
    assert describe(result).startswith("6 images: scores differ by at most 0.0e+00")


def test_a_difference_above_tolerance_fails_with_the_numbers():
    changed = SCORES.copy()
    changed[2, 3] += 2e-4
    result = compared(SCORES, changed, 1e-4, **ABOUT)
    assert result.max_score_difference == pytest.approx(2e-4, rel=1e-2)
    assert "scores differ by up to 2.00e-04 (tolerance 0.0001)" in failure(result, 0)


def test_nan_fails():
    changed = SCORES.copy()
    changed[0, 0] = np.nan
    assert "differ by up to inf" in failure(compared(SCORES, changed, 1e-4, **ABOUT), 0)


def test_another_ranking_is_seen():
    result = compared(SCORES, SCORES[:, ::-1], 1.0, **ABOUT)
    assert result.same_top_k == 1  # everything is within so wide a tolerance
    assert compared(SCORES, SCORES[:, ::-1], 1e-4, **ABOUT).same_top_k < 1


def test_categories_within_tolerance_may_swap():
    expected = np.array([[0.9, 0.5, 0.50005]], dtype=np.float32)
    actual = np.array([[0.9, 0.50005, 0.5]], dtype=np.float32)
    assert compared(expected, actual, 1e-4, **ABOUT).same_top_k == 1


@pytest.mark.parametrize(("limit", "fails"), [(0.5, False), (0.3, True)])
def test_a_loss_of_map_is_limited(limit, fails):
    accuracy = Accuracy(images=50, pytorch={"mAP": 81.2}, target={"mAP": 80.8})
    result = compared(SCORES, SCORES, 1e-4, **ABOUT, accuracy=accuracy)
    message = failure(result, limit)
    assert (message is not None) == fails
    if fails:
        assert message == "mAP falls by 0.40 points, from 81.20 to 80.80 on 50 images (limit 0.3)"
    assert "mAP 81.20 -> 80.80" in describe(result)


def test_embeddings_are_compared_where_they_are_known():
    e = np.eye(3, 4, dtype=np.float32)  # [N,E]
    turned = e.copy()
    turned[1] = (0, 0.6, 0.8, 0)
    scores = SCORES[:3]
    assert compare(Answers(scores), Answers(scores, turned), 1e-4, **ABOUT).embedding_cosine is None
    result = compare(Answers(scores, e), Answers(scores, turned), 1e-4, **ABOUT, embedding_limit=0.9)
    assert result.embedding_cosine == pytest.approx(0.6)
    assert "an embedding has cosine 0.600000 with PyTorch's" in failure(result, 0)
    with pytest.raises(ValueError, match="expected embeddings"):
        compare(Answers(scores, e), Answers(scores), 1e-4, **ABOUT)


@pytest.mark.parametrize("with_embeddings", [False, True])
def test_batches_of_alternating_size_are_one_answer(with_embeddings):
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return Answers(batch.mean(axis=(1, 2)), batch[:, 0, 0] if with_embeddings else None)

    images = np.random.default_rng(0).integers(0, 256, (7, 2, 2, 3), np.uint8)
    found = answer_all(run, images, (1, 4))
    assert sizes == [1, 4, 1, 1]
    np.testing.assert_array_equal(found.scores, images.mean(axis=(1, 2)))
    assert (found.embeddings is None) != with_embeddings
    if with_embeddings:
        np.testing.assert_array_equal(found.embeddings, images[:, 0, 0])


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_scores_from_logits(size):
    logits = size * np.array([[1.0, -2.0, 0.0]], np.float32)
    with np.errstate(over="ignore"):
        sigmoid, softmax = to_scores(logits, "sigmoid"), to_scores(logits, "softmax")
    assert sigmoid[0, 2] == 0.5
    assert np.isfinite(sigmoid).all()
    np.testing.assert_allclose(softmax.sum(), 1, rtol=1e-6)
    assert (np.argsort(softmax) == np.argsort(sigmoid)).all() or size > 1
