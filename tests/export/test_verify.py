import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.export.verify import compare, in_batches, require_within

SCORES = np.random.default_rng(0).random((6, 10)).astype(np.float32)


def test_equal_scores():
    result = compare(SCORES, SCORES.copy(), "float32")
    assert (result.max_score_difference, result.mean_score_difference, result.same_top_k) == (0, 0, 1)
    assert (result.images, result.top_k) == (6, 5)
    require_within(result, "cpu:fp32")


def test_a_difference_above_tolerance_fails_with_the_numbers():
    changed = SCORES.copy()
    changed[2, 3] += 2e-4
    result = compare(SCORES, changed, "float32")
    assert result.max_score_difference == pytest.approx(2e-4, rel=1e-2)
    with pytest.raises(
        UserError,
        match=r"cpu:fp32 does not give PyTorch's answers: scores differ by up to 2\.00e-04 \(tolerance 1e-04\)",
    ):
        require_within(result, "cpu:fp32")


def test_nan_fails():
    changed = SCORES.copy()
    changed[0, 0] = np.nan
    with pytest.raises(UserError, match="differ by up to inf"):
        require_within(compare(SCORES, changed, "float32"), "cpu:fp32")


def test_another_ranking_is_seen():
    assert compare(SCORES, SCORES[:, ::-1], "float32").same_top_k < 1


def test_categories_within_tolerance_may_swap():
    expected = np.array([[0.9, 0.5, 0.50005]], dtype=np.float32)
    actual = np.array([[0.9, 0.50005, 0.5]], dtype=np.float32)
    assert compare(expected, actual, "float32").same_top_k == 1


def test_batches_cover_every_image_once():
    images = np.arange(10).reshape(10, 1)
    np.testing.assert_array_equal(in_batches(lambda x: x * 2, images), images * 2)
