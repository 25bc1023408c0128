"""How far the kernels' results may be from the specification: the standard deviation that each result's error has, by
propagation, and how many of it are allowed.

tanh.approx.f32 is off by up to TANH of each tanh. Over K the errors are as good as independent (they follow the bits of
u v, their signs those of q), so a sum's error grows with the root of its squared terms; to first order it goes through
softmax, pooling and cosine to the logits. The inputs' own rounding is no error of the kernel. Rounding of float32 sums
is thousands of times smaller; ROUNDING keeps the deviations above zero where no tanh reaches a result.
"""

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from sdpl.kernels import EPS
from sdpl.kernels.reference import Array, softmax

TANH = 2.0**-11  # largest relative error of tanh.approx.f32
POLYNOMIAL = 2.0**-10.84  # largest absolute error of the polynomial that replaces some tanh
ROUNDING = 2.0**-22  # of a float32 sum, of the sum of its absolute terms


class Deviations(NamedTuple):
    """Standard deviations of the forward kernel's errors."""

    scores: Any  # [B,C,L], before the softmax
    attention: Any  # [B,C,L]
    logits: Any  # [B,C]


def forward_deviations(
    u: Array, v: Array, q: Array, g: Array, t: Array, eps: float = EPS, polynomial: int = 0
) -> Deviations:
    """Of u [B,L,K], v [C,K], q [K], g [B,L,E], t [C,E], in float64. polynomial: of every 8 tanh, how many are one."""
    of_unit, of_polynomial = 1 - polynomial / 8, polynomial / 8 * (POLYNOMIAL / TANH) ** 2
    xp = array_namespace(u, v, q, g, t)
    s, s_variance, logits = [], [], []
    for c in range(v.shape[0]):  # B*C*L*K values never exist at once
        y = xp.tanh(u * v[c])  # [B,L,K]
        s.append(y @ q)
        squares = of_unit * (y**2 @ q**2) + of_polynomial * xp.sum(q**2)
        s_variance.append(_variance(squares, xp.abs(y) @ xp.abs(q)))
    s_l, variance = xp.stack(s, axis=1), xp.stack(s_variance, axis=1)  # [B,C,L]
    a = softmax(s_l)
    mean = xp.sum(a**2 * variance, axis=-1, keepdims=True)
    attention = a * xp.sqrt((1 - 2 * a) * variance + mean) + ROUNDING * a
    for c in range(v.shape[0]):
        e = xp.sum(a[:, c, :, None] * g, axis=1)  # [B,E]
        norm = xp.clip(xp.linalg.vector_norm(e, axis=-1, keepdims=True), min=eps)  # [B,1]
        along = xp.sum(e * t[c], axis=-1, keepdims=True) / norm**3 * xp.astype(norm > eps, e.dtype)
        slope = xp.sum(g * (t[c] / norm - along * e)[:, None], axis=-1)  # [B,L]: of the logit by each weight
        of_softmax = xp.sum(a[:, c] * slope, axis=-1, keepdims=True)  # 0 unless the norm is at its floor
        through = xp.sum((a[:, c] * (slope - of_softmax)) ** 2 * variance[:, c], axis=-1)  # [B]
        logits.append(xp.sqrt(through) + ROUNDING * xp.linalg.vector_norm(t[c]))
    return Deviations(xp.sqrt(variance), attention, xp.stack(logits, axis=1))


def backward_deviations(u: Array, v: Array, q: Array, ds: Array) -> tuple[Array, Array, Array]:
    """Of the gradients of u [B,L,K], v [C,K] and q [K], from the scores' gradient ds [B,C,L], in float64.

    The derivative 1 - tanh^2 is off by 2 tanh^2 times the error of tanh.
    """
    xp = array_namespace(u, v, q, ds)
    du, dv, dq = xp.zeros_like(u), [], xp.zeros_like(q)
    for c in range(v.shape[0]):
        d = ds[:, c, :, None]  # [B,L,1]
        y = xp.tanh(u * v[c])  # [B,L,K]
        each = _variance((2 * y**2 * d) ** 2, xp.abs(d))  # [B,L,K], of ds (1 - tanh^2)
        du = du + (q * v[c]) ** 2 * each
        dv.append(xp.sum((q * u) ** 2 * each, axis=(0, 1)))
        dq = dq + xp.sum(_variance((y * d) ** 2, xp.abs(y * d)), axis=(0, 1))
    return xp.sqrt(du), xp.sqrt(xp.stack(dv)), xp.sqrt(dq)


def departure(actual: Any, expected: Any, deviation: Any) -> str | None:
    """Why results are too far from those expected, or None.

    Their errors, in standard deviations, must have a root mean square of at most 1.5, and none may be larger than the
    largest of so many normal values; a few results are allowed more, as their root mean square varies more.
    """
    xp = array_namespace(actual, expected, deviation)
    z = xp.abs(xp.astype(actual, expected.dtype) - expected) / (deviation + 1e-300)
    count = math.prod(z.shape)
    if count == 0:
        return None
    mean, most = float(xp.mean(z**2)) ** 0.5, float(xp.max(z))
    mean_limit, most_limit = 1.5 + 2.5 / count**0.5, math.sqrt(2 * math.log(count)) + 4
    if mean <= mean_limit and most <= most_limit:
        return None
    return (
        f"errors of {mean:.2f} standard deviations in the root mean square (limit {mean_limit:.2f}) and {most:.1f} at "
        f"most (limit {most_limit:.1f})"
    )


def _variance(squares: Array, magnitude: Array) -> Array:
    """Of a sum: from the sum of its squared terms, each off by TANH, and from rounding, by that of its magnitudes."""
    return TANH**2 * squares + (ROUNDING * magnitude) ** 2
