"""The derived errors are the same for NumPy and PyTorch, and those that random errors of tanh really make."""

import numpy as np
import pytest
import torch

from sdpl.kernels.reference import attention_pool
from sdpl.kernels.tolerance import TANH, backward_deviations, departure, forward_deviations


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    shapes = ((2, 9, 16), (5, 16), (16,), (2, 9, 8), (5, 8))
    return [rng.standard_normal(shape) for shape in shapes]


def test_numpy_and_pytorch_agree(operands):
    ds = np.ones((2, 5, 9))
    tensors = [torch.from_numpy(x) for x in operands]
    pairs = [
        *zip(forward_deviations(*operands), forward_deviations(*tensors), strict=True),
        *zip(
            backward_deviations(*operands[:3], ds), backward_deviations(*tensors[:3], torch.ones(2, 5, 9)), strict=True
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_errors_of_that_size_in_every_tanh_make_these_deviations(operands):
    u, v, q, g, t = operands
    rng = np.random.default_rng(1)
    y = np.tanh(u[:, None] * v[None, :, None])  # [B,C,L,K]
    exact = attention_pool(y @ q, g, t)
    errors = []
    for _ in range(2000):
        noisy = y * (1 + TANH * rng.choice((-1, 1), y.shape))
        errors.append([a - b for a, b in zip(attention_pool(noisy @ q, g, t), exact, strict=True)])
    deviations = forward_deviations(*operands)
    for measured, derived in zip(zip(*errors, strict=True), (deviations.logits, deviations.attention), strict=True):
        np.testing.assert_allclose(np.std(measured, axis=0), derived, rtol=0.1)


def test_what_is_too_far_away_is_told():
    normal = np.random.default_rng(0).standard_normal(1000)
    one, zero = np.ones(1000), np.zeros(1000)
    assert departure(normal, zero, one) is None
    assert departure(zero[:0], zero[:0], one[:0]) is None
    assert "errors of 2.9" in departure(3 * normal, zero, one)
    single = zero.copy()
    single[7] = 8
    assert "8.0 at most" in departure(single, zero, one)
