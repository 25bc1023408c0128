"""Bilinear attention pooling, the specification: for NumPy and PyTorch arrays, in any float type.

Letters: B batch, L locations, C categories, K joint dimension, E embedding dimension.

    s[b,c,l]    = sum_k q[k] tanh(u[b,l,k] v[c,k])            paper eq. 3-4, P and F_att folded into q
    a[b,c,:]    = softmax over l of s[b,c,:]                  paper eq. 5
    e[b,c]      = sum_l a[b,c,l] g[b,l]                       paper eq. 6, the map to E moved before the sum
    logit[b,c]  = <e[b,c], t[c]> / max(|e[b,c]|, eps)         paper eq. 9, t holds 1/tau
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from array_api_compat import array_namespace

from sdpl.kernels import EPS

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")
BLOCK_C = 256  # categories pooled at once: e of all of them, [B,C,E], would be 630 MB at B=32, C=9600


def attention_logits(u: Array, v: Array, q: Array) -> Array:
    """s [B,C,L] from u [B,L,K], v [C,K], q [K]. One category at a time: B*C*L*K values never exist at once."""
    xp = array_namespace(u, v, q)
    s: Array = xp.stack([xp.tanh(u * v[c]) @ q for c in range(v.shape[0])], axis=1)  # [B,C,L]
    return s


def softmax(s: Array) -> Array:
    """Softmax over the last axis, stable for values of any size."""
    xp = array_namespace(s)
    exp = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
    result: Array = exp / xp.sum(exp, axis=-1, keepdims=True)
    return result


def attention_pool(s: Array, g: Array, t: Array, eps: float = EPS) -> tuple[Array, Array]:
    """logits [B,C] and attention [B,C,L] from s [B,C,L], g [B,L,E], t [C,E]."""
    xp = array_namespace(s, g, t)
    a = softmax(s)  # [B,C,L]
    logits = []
    for start in range(0, t.shape[0], BLOCK_C):
        block = slice(start, start + BLOCK_C)
        e = a[:, block] @ g  # [B,BLOCK_C,E]
        norm = xp.linalg.vector_norm(e, axis=-1)  # [B,BLOCK_C]
        logits.append(xp.sum(e * t[block], axis=-1) / xp.clip(norm, min=eps))
    return xp.concat(logits, axis=1), a


def bilinear_attention_pool(u: Array, v: Array, q: Array, g: Array, t: Array, eps: float = EPS) -> tuple[Array, Array]:
    """logits [B,C] and attention [B,C,L] from u [B,L,K], v [C,K], q [K], g [B,L,E], t [C,E]."""
    return attention_pool(attention_logits(u, v, q), g, t, eps)


def mean_embedding(g: Array, eps: float = EPS) -> Array:
    """The embedding of whole images, of unit length, [B,E] from g [B,L,E]: the mean over the locations.

    It is the operator with an attention that looks everywhere alike (v = 0) and the axes for text features (t = 1).
    """
    xp = array_namespace(g)
    e = xp.mean(g, axis=1)  # [B,E]
    unit: Array = e / xp.clip(xp.linalg.vector_norm(e, axis=-1, keepdims=True), min=eps)
    return unit
