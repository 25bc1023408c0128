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
from sdpl.kernels.compile import polynomial as polynomial_of_source
from sdpl.kernels.reference import Array, softmax

TANH = 2.0**-11  # largest relative error of tanh.approx.f32
POLYNOMIAL = 2.0**-10.84  # largest absolute error of the polynomial that replaces some tanh
ROUNDING = 2.0**-22  # of a float32 sum, of the sum of its absolute terms
HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # largest relative rounding error
# The share of attention that may lie elsewhere on average, when polynomials are taken: a tenth of the 1 % that a
# separable head may move at most; more for bfloat16, whose rounding of u and v moves more by itself; none where float32
# was asked for.
BUDGET = {"float32": 0.0, "float16": 1e-3, "bfloat16": 4e-3}
# Of 8 by polynomial: with more the kernel is bound by issue slots, see docs/kernel.md. The kernel takes one fewer at
# every other location; what is derived here is an upper bound.
MOST = 2


class Deviations(NamedTuple):
    """Standard deviations of the forward kernel's errors."""

    scores: Any  # [B,C,L], before the softmax
    attention: Any  # [B,C,L]
    logits: Any  # [B,C]


class PolynomialChoice(NamedTuple):
    """of_8: of every 8 tanh, how many at most the kernel takes as a polynomial. The share of attention that its errors
    and the rounding of u and v move, as `attention_moved`: with the tanh unit alone, and as chosen."""

    of_8: int
    moved_before: float
    moved: float


def choose_polynomial(u: Array, v: Array, q: Array, dtype: str) -> PolynomialChoice:
    """The largest share of polynomials that a dtype's budget (`BUDGET`) allows, on real u [B,L,K], v [C,K], q [K]."""
    moved = [attention_moved(u, v, q, dtype, polynomial) for polynomial in range(MOST + 1)]
    of_8 = max(n for n, share in enumerate(moved) if n == 0 or share <= BUDGET[dtype])
    return PolynomialChoice(of_8, moved[0], moved[of_8])


def attention_moved(u: Array, v: Array, q: Array, dtype: str, polynomial: int = 0) -> float:
    """The share of a category's attention that is expected at other locations than it should be, on average: by the
    derived deviations, with u and v rounded to a dtype, and by what the polynomial does to these very values."""
    xp = array_namespace(u, v, q)
    s, variance = _scores(u, v, q, 0, 2 * HALF_UNIT[dtype] ** 2 / 3)  # of u and of v, each uniform
    a = softmax(s)
    mean_of_normal = math.sqrt(2 / math.pi)  # of |x|, in standard deviations
    derived = float(xp.mean(xp.sum(_attention(a, variance), axis=-1))) * mean_of_normal / 2
    if polynomial == 0:
        return derived
    some = xp.astype(xp.arange(u.shape[-1]) % 8 < polynomial, q.dtype) * q  # of those k that take it
    shift = xp.stack([(_polynomial_tanh(u * v_c) - xp.tanh(u * v_c)) @ some for v_c in v], axis=1)  # [B,C,L]
    return math.hypot(derived, float(xp.mean(xp.sum(xp.abs(softmax(s + shift) - a), axis=-1))) / 2)


def _polynomial_tanh(x: Array) -> Array:
    """As the kernel's `half_tanh`, doubled and less 1."""
    xp = array_namespace(x)
    limit, (p, *coefficients) = polynomial_of_source()
    y = xp.clip(xp.abs(x) / limit, max=1.0)
    for coefficient in coefficients:
        p = p * y + coefficient
    result: Array = 2 * xp.clip(x / limit * p + 0.5, min=0.0, max=1.0) - 1
    return result


def forward_deviations(
    u: Array, v: Array, q: Array, g: Array, t: Array, eps: float = EPS, polynomial: int = 0
) -> Deviations:
    """Of u [B,L,K], v [C,K], q [K], g [B,L,E], t [C,E], in float64. polynomial: of every 8 tanh, how many are one
    at most."""
    xp, logits = array_namespace(u, v, q, g, t), []
    s, variance = _scores(u, v, q, polynomial)
    a = softmax(s)
    for c in range(v.shape[0]):
        e = xp.sum(a[:, c, :, None] * g, axis=1)  # [B,E]
        norm = xp.clip(xp.linalg.vector_norm(e, axis=-1, keepdims=True), min=eps)  # [B,1]
        along = xp.sum(e * t[c], axis=-1, keepdims=True) / norm**3 * xp.astype(norm > eps, e.dtype)
        slope = xp.sum(g * (t[c] / norm - along * e)[:, None], axis=-1)  # [B,L]: of the logit by each weight
        of_softmax = xp.sum(a[:, c] * slope, axis=-1, keepdims=True)  # 0 unless the norm is at its floor
        through = xp.sum((a[:, c] * (slope - of_softmax)) ** 2 * variance[:, c], axis=-1)  # [B]
        logits.append(xp.sqrt(through) + ROUNDING * xp.linalg.vector_norm(t[c]))
    return Deviations(xp.sqrt(variance), _attention(a, variance), xp.stack(logits, axis=1))


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


def _scores(u: Array, v: Array, q: Array, polynomial: int, rounding: float = 0.0) -> tuple[Array, Array]:
    """s [B,C,L] and the variance of its error. rounding: the relative variance of u v."""
    of_unit, of_polynomial = 1 - polynomial / 8, polynomial / 8 * (POLYNOMIAL / TANH) ** 2
    xp = array_namespace(u, v, q)
    s, variance = [], []
    for c in range(v.shape[0]):  # B*C*L*K values never exist at once
        z = u * v[c]  # [B,L,K]
        y = xp.tanh(z)
        s.append(y @ q)
        squares = of_unit * (y**2 @ q**2) + of_polynomial * xp.sum(q**2)
        of_inputs = rounding * (((1 - y**2) * z) ** 2 @ q**2) if rounding else 0.0
        variance.append(_variance(squares, xp.abs(y) @ xp.abs(q)) + of_inputs)
    return xp.stack(s, axis=1), xp.stack(variance, axis=1)


def _attention(a: Array, variance: Array) -> Array:
    """The standard deviation of attention's error from the scores' variance, [B,C,L]."""
    xp = array_namespace(a, variance)
    mean = xp.sum(a**2 * variance, axis=-1, keepdims=True)
    deviation: Array = a * xp.sqrt((1 - 2 * a) * variance + mean) + ROUNDING * a
    return deviation


def _variance(squares: Array, magnitude: Array) -> Array:
    """Of a sum: from the sum of its squared terms, each off by TANH, and from rounding, by that of its magnitudes."""
    return TANH**2 * squares + (ROUNDING * magnitude) ** 2
