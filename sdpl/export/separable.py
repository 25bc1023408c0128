"""A separable replacement of the attention logits, for engines without the kernel and with thousands of categories.

    tanh(u v) ~ sum_r W_r(v) tanh(x_r u)      so      s = sum_k q_k tanh(u_k v_k) ~ tanh(u x) @ weight

One matrix product [L, K*R] x [K*R, C] takes the place of C*L*K tanh. The nodes x [K,R] and the weights are fitted to
the u that a checkpoint really makes, since a fit to an assumed distribution fails on heavy tails; the error is
measured on features that the fit has not seen. On a GPU's tensor cores terms and weights are float16; the error is
then measured with them rounded so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sdpl.data.images import evenly_taken
from sdpl.errors import UserError
from sdpl.kernels.reference import attention_logits, softmax

RANKS = (4, 6, 8, 12, 16, 24)  # the first that is exact enough is taken
MAX_RANK = 64  # that may be asked for; each costs as much as the first
LIMIT = 0.01  # the share of one category's attention that may lie at other locations than with the exact operator
SAMPLES = 768  # values of each u_k that the fit looks at
BLOCK_K, BLOCK_C = 64, 256  # of one step of the fit
RIDGE = 1e-9  # relative; nodes may coincide where categories do


@dataclass(frozen=True)
class SeparableScores:
    """x [K,R], weight [K*R,C] (float32), the largest share of attention moved on held-out features, and the largest
    difference of a score on all images that were looked at. dtype: to which u, terms, weights and results are rounded;
    sums are float32."""

    x: np.ndarray
    weight: np.ndarray
    attention_moved: float
    score_difference: float = 0.0
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return int(self.x.shape[1])

    def scores(self, u: np.ndarray) -> np.ndarray:
        """s [B,C,L] from u [B,L,K]."""
        u, x, weight = (self._rounded(each) for each in (u, self.x, self.weight))
        terms = self._rounded(np.tanh(self._rounded(u[..., None] * x))).reshape(*u.shape[:2], -1)  # [B,L,K*R]
        s = self._rounded(terms @ weight).transpose(0, 2, 1)
        return s

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype == "float32" else values.astype(self.dtype).astype(np.float32)


def separate(
    u: np.ndarray,
    held_out: np.ndarray,
    v: np.ndarray,
    q: np.ndarray,
    score_difference: Callable[[SeparableScores], float] = lambda fitted: 0.0,
    limit: float = np.inf,
    dtype: str = "float32",
    ranks: Sequence[int] = RANKS,
) -> SeparableScores:
    """The separable form of the attention logits, of the lowest rank that moves at most `LIMIT` of the attention and
    no score by more than `limit`.

    u, held_out: [N,L,K] of calibration images and of others. v [C,K], q [K]. score_difference: the largest of a
    head's scores, over all images that there are. dtype: as of `SeparableScores`. ranks: to try, in this order. Raises
    UserError with the measured errors when no rank is exact enough.
    """
    exact = softmax(attention_logits(held_out, v, q))  # [N,C,L]
    for rank in ranks:
        x, weight = _fit(u.reshape(-1, u.shape[-1]), v, q, rank)
        fitted = SeparableScores(x, weight, 0, dtype=dtype)
        moved = float(np.abs(softmax(fitted.scores(held_out)) - exact).sum(-1).max() / 2)
        apart = score_difference(fitted)
        if moved <= LIMIT and apart <= limit:
            return SeparableScores(x, weight, moved, apart, dtype)
    scores = f" and a score by {apart:.1e} (limit {limit:g})" if apart > limit else ""
    more = f"take more terms (--terms {min(2 * rank, MAX_RANK)}), " if rank < MAX_RANK else ""
    raise UserError(
        f"--head separable is not exact enough for this checkpoint: even with {rank} terms it moves {moved:.1%} of a "
        f"category's attention on held-out images (limit {LIMIT:.0%}){scores}. Calibrate on more images, {more}or keep "
        "--head exact."
    )


def _fit(u: np.ndarray, v: np.ndarray, q: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for each k over the values of u_k [N,K]: nodes at quantiles of |v_k| over the categories."""
    u = u[evenly_taken(len(u), SAMPLES)].astype(np.float64)  # [N,K]
    v = v.astype(np.float64)
    x = np.quantile(np.abs(v), np.linspace(0, 1, rank), axis=0).T  # [K,R]
    weight = np.empty((*x.shape, len(v)))  # [K,R,C]
    for k in (slice(i, i + BLOCK_K) for i in range(0, len(x), BLOCK_K)):
        terms = np.tanh(u.T[k, :, None] * x[k, None])  # [k,N,R]
        gram = terms.transpose(0, 2, 1) @ terms  # [k,R,R]
        gram += RIDGE * len(u) * np.eye(rank)
        for c in (slice(i, i + BLOCK_C) for i in range(0, len(v), BLOCK_C)):
            wanted = np.tanh(u.T[k, :, None] * v[c, k].T[:, None])  # [k,N,c]
            weight[k, :, c] = np.linalg.solve(gram, terms.transpose(0, 2, 1) @ wanted)
    weight *= q[:, None, None]
    return x.astype(np.float32), weight.reshape(-1, len(v)).astype(np.float32)
