"""Two poolings that are not the one operator of `sdpl.kernels`: fused features (eq. 6) and sigmoid masks."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdpl.kernels import EPS


def fused_attention_pool(
    u: torch.Tensor, v: torch.Tensor, q: torch.Tensor, to_embedding: nn.Linear, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B,C] and attention [B,C,L], where the joint features themselves are pooled (`pooling: fused`):

        y_cl = tanh(u_l * v_c);  a_c = softmax_l(q . y_cl);  e_c = map(sum_l a_cl y_cl);  logit_c = <e_c, t_c> / |e_c|

    u [B,L,K], v [C,K], q [K], t [C,E]. One category at a time, and tanh again in the backward pass: B*L*C*K values
    never exist at once.
    """
    pooled, attention = [], []
    for row in v:
        if torch.is_grad_enabled():
            e, a = checkpoint(_pool_one, u, row, q, use_reentrant=False)  # [B,K], [B,L]
        else:
            e, a = _pool_one(u, row, q)
        pooled.append(e)
        attention.append(a)
    return _cosine(to_embedding(torch.stack(pooled, dim=1)), t), torch.stack(attention, dim=1)


def mask_pool(z: torch.Tensor, g: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B,C] and attention [B,C,L] of masks a = sigmoid(z), z [B,C,L], that weigh g [B,L,E]; t [C,E]."""
    a = z.sigmoid()  # [B,C,L]
    return _cosine(a @ g, t), a


def _pool_one(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled joint features [B,K] and attention [B,L] of one category, v [K]."""
    y = torch.tanh(u * v)  # [B,L,K]
    a = (y @ q).softmax(dim=-1)  # [B,L]
    return (a[:, None] @ y)[:, 0], a


def _cosine(e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """<e, t> / max(|e|, eps), [B,C], from e [B,C,E] and t [C,E]."""
    logits: torch.Tensor = (e * t).sum(dim=-1) / torch.linalg.vector_norm(e, dim=-1).clamp(min=EPS)
    return logits
