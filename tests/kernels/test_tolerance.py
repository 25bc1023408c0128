"""The derived errors are the same for NumPy and PyTorch, and those that random errors of tanh really make."""

import numpy as np
import pytest
import torch

from sdpl.kernels.reference import attention_logits, attention_pool, softmax
from sdpl.kernels.tolerance import (
    BUDGET,
    POLYNOMIAL,
    TANH,
    _polynomial_tanh,
    attention_moved,
    backward_deviations,
    choose_polynomial,
    departure,
    forward_deviations,
)


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


@pytest.mark.parametrize(("dtype", "of_8"), [("float32", 0), ("float16", 2), ("bfloat16", 2)])
def test_polynomials_are_taken_as_far_as_the_dtype_s_budget_goes(dtype, of_8, monkeypatch):
    rng = np.random.default_rng(0)
    u, v, q = (rng.standard_normal(shape) for shape in ((2, 49, 256), (5, 256), (256,)))
    choice = choose_polynomial(u, v, q / 5, dtype)
    assert choice.of_8 == of_8
    assert choice.moved_before == attention_moved(u, v, q / 5, dtype)
    assert choice.moved == attention_moved(u, v, q / 5, dtype, of_8) <= max(BUDGET[dtype], choice.moved_before)
    monkeypatch.setitem(BUDGET, dtype, attention_moved(u, v, q / 5, dtype, 1))
    assert choose_polynomial(u, v, q / 5, dtype).of_8 == 1


def test_the_polynomial_is_as_exact_as_it_is_said_to_be():
    x = np.linspace(-20, 20, 1_000_001)
    error = np.abs(_polynomial_tanh(x) - np.tanh(x)).max()
    assert 0.99 * POLYNOMIAL < error < 1.01 * POLYNOMIAL


def test_rounded_inputs_make_the_derived_error():
    """With exact tanh, u v rounded as float16 would: the derivation without its part of the tanh unit."""
    rng = np.random.default_rng(0)
    u, v, q = (rng.standard_normal(shape) for shape in ((4, 9, 64), (6, 64), (64,)))
    exact = softmax(attention_logits(u, v, q))
    u_rounded, v_rounded = (x.astype(np.float16).astype(float) for x in (u, v))
    moved = np.abs(softmax(attention_logits(u_rounded, v_rounded, q)) - exact).sum(-1).mean() / 2
    with_unit = [attention_moved(u, v, q, dtype) ** 2 for dtype in ("float16", "float32")]
    derived = (with_unit[0] - with_unit[1]) ** 0.5
    assert 0.2 < moved / derived < 1.2  # the largest rounding error is not always reached


def test_what_is_too_far_away_is_told():
    normal = np.random.default_rng(0).standard_normal(1000)
    one, zero = np.ones(1000), np.zeros(1000)
    assert departure(normal, zero, one) is None
    assert departure(zero[:0], zero[:0], one[:0]) is None
    assert "errors of 2.9" in departure(3 * normal, zero, one)
    single = zero.copy()
    single[7] = 8
    assert "8.0 at most" in departure(single, zero, one)
