"""The specification against the paper's equations, written out with loops, and its own edges."""

import math

import numpy as np
import pytest
import torch

from sdpl.kernels import EPS
from sdpl.kernels.reference import BLOCK_C, bilinear_attention_pool


def operands(batch=2, locations=5, categories=3, joint=7, embed=4, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, locations, joint), (categories, joint), (joint,), (batch, locations, embed), (categories, embed))
    return [scale * rng.standard_normal(shape) for shape in shapes]


def by_loops(u, v, q, g, t):
    """Equations 3-6 and 9, one number at a time."""
    logits = np.zeros((len(u), len(v)))
    for b in range(len(u)):
        for c in range(len(v)):
            s = [sum(q[k] * math.tanh(u[b, x, k] * v[c, k]) for k in range(len(q))) for x in range(u.shape[1])]
            weights = [math.exp(value) for value in s]
            e = sum(w * g[b, x] for x, w in enumerate(weights)) / sum(weights)
            logits[b, c] = e @ t[c] / max(math.sqrt(e @ e), EPS)
    return logits


def test_equals_the_equations_written_out():
    arrays = operands()
    logits, attention = bilinear_attention_pool(*arrays)
    np.testing.assert_allclose(logits, by_loops(*arrays), rtol=1e-12)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-12)


def test_numpy_and_torch_agree():
    arrays = operands()
    logits, attention = bilinear_attention_pool(*arrays)
    torch_logits, torch_attention = bilinear_attention_pool(*(torch.from_numpy(a) for a in arrays))
    np.testing.assert_allclose(torch_logits, logits, rtol=1e-12)
    np.testing.assert_allclose(torch_attention, attention, rtol=1e-12)


def test_gradients_are_those_of_finite_differences():
    inputs = [torch.from_numpy(a).requires_grad_() for a in operands()]
    assert torch.autograd.gradcheck(lambda *x: bilinear_attention_pool(*x), inputs)


@pytest.mark.parametrize("size", [1e4, 1e-30])
def test_scores_of_any_size_stay_finite(size):
    u, v, q, g, t = operands()
    logits, attention = bilinear_attention_pool(u, v, q * size, g, t)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(attention.sum(-1), 1)


def test_zero_embedding_gives_zero_not_nan():
    u, v, q, g, t = operands()
    logits, _ = bilinear_attention_pool(u, v, q, np.zeros_like(g), t)
    assert (logits == 0).all()


def test_empty_batch():
    logits, attention = bilinear_attention_pool(*operands(batch=0))
    assert logits.shape == (0, 3)
    assert attention.shape == (0, 3, 5)


def test_more_categories_than_one_block():
    u, v, q, g, t = operands(categories=2 * BLOCK_C + 3)
    logits, _ = bilinear_attention_pool(u, v, q, g, t)
    alone = [bilinear_attention_pool(u, v[c : c + 1], q, g, t[c : c + 1])[0] for c in range(len(v))]
    np.testing.assert_allclose(logits, np.concatenate(alone, axis=1), rtol=1e-12)
