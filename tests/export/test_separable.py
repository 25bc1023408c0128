"""The separable head: exact enough on features it has not seen, or refused with the error that was measured."""

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.export.separable import LIMIT, RANKS, separate
from sdpl.kernels.reference import attention_logits, softmax

K, L = 48, 9


def operands(draw, categories=20, scale=1.0):
    u, held_out = scale * draw((24, L, K)), scale * draw((8, L, K))
    return u, held_out, draw((categories, K)), 3 * draw((K,)) / K**0.5


def moved(fitted, u, v, q):
    return np.abs(softmax(fitted.scores(u)) - softmax(attention_logits(u, v, q))).sum(-1).max() / 2


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_attention_is_the_exact_one_s_within_the_limit(scale):
    u, held_out, v, q = operands(np.random.default_rng(0).standard_normal, scale=scale)
    fitted = separate(u, held_out, v, q)
    assert moved(fitted, held_out, v, q) == pytest.approx(fitted.attention_moved)
    assert fitted.attention_moved <= LIMIT
    assert fitted.rank in RANKS
    assert (fitted.x.shape, fitted.weight.shape) == ((K, fitted.rank), (K * fitted.rank, 20))
    assert fitted.x.dtype == fitted.weight.dtype == np.float32


def test_more_terms_are_taken_only_when_they_are_needed():
    draw = np.random.default_rng(0).standard_normal
    u, held_out, v, q = operands(draw, categories=200, scale=3)
    assert separate(u, held_out, v, q).rank > separate(0.05 * u, 0.05 * held_out, v, q).rank


def test_features_unlike_the_calibration_are_refused_with_the_number():
    draw = np.random.default_rng(0).standard_normal
    u, held_out, v, q = operands(draw, categories=200)
    with pytest.raises(UserError, match=r"even with 24 terms it moves \d+\.\d% of a category's attention .*limit 1%"):
        separate(0.01 * u, 50 * held_out, v, q)


def test_as_many_categories_as_one():
    u, held_out, v, q = operands(np.random.default_rng(0).standard_normal, categories=1)
    assert separate(u, held_out, v, q).attention_moved < 1e-3


def test_a_wrong_fit_is_noticed():
    u, held_out, v, q = operands(np.random.default_rng(0).standard_normal)
    fitted = separate(u, held_out, v, q)
    fitted.weight[::2] *= 1.3
    assert moved(fitted, held_out, v, q) > LIMIT


def test_the_rank_rises_until_the_scores_hold_too():
    """3000 categories once passed on 8 photos and were off by four times the limit on 128."""
    u, held_out, v, q = operands(np.random.default_rng(0).standard_normal)
    free = separate(u, held_out, v, q)
    limit = {rank: 1e-3 if rank <= free.rank else 1e-5 for rank in RANKS}
    fitted = separate(u, held_out, v, q, lambda found: limit[found.rank], 1e-4)
    assert fitted.rank == next(rank for rank in RANKS if rank > free.rank)
    assert fitted.score_difference == 1e-5
    with pytest.raises(UserError, match=r"even with 24 terms .* and a score by 1.0e-03 \(limit 0.0001\).*--terms 48"):
        separate(u, held_out, v, q, lambda found: 1e-3, 1e-4)


def test_as_many_terms_as_asked_for():
    u, held_out, v, q = operands(np.random.default_rng(0).standard_normal)
    assert separate(u, held_out, v, q, ranks=(30,)).rank == 30
