"""The fold: why the exported head is small. Exact algebra on the trained parameters."""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from sdpl.train.model import PartialLabelModel


@dataclass(frozen=True)
class FoldedHead:
    """The head after training: one linear layer on the trunk's map, and the operator's constants.

    [u | g] = f @ weight + bias, with weight [D,K+E] and bias [K+E]; v [C,K], q [K], t [C,E].
    """

    weight: torch.Tensor
    bias: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor
    t: torch.Tensor
    to_embedding: tuple[torch.Tensor, torch.Tensor] | None = None  #: map [K,E] and bias [E] of fused pooling: no g then

    @property
    def joint_dim(self) -> int:
        """K."""
        return len(self.q)

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """The operator's constants v [C,K], q [K], t [C,E]; of fused pooling also map [K,E] and bias [E]."""
        own = {"v": self.v.numpy(), "q": self.q.numpy(), "t": self.t.numpy()}
        if self.to_embedding is not None:
            own |= {"map": self.to_embedding[0].numpy(), "bias": self.to_embedding[1].numpy()}
        return own


@torch.no_grad()
def fold(model: PartialLabelModel, dtype: torch.dtype = torch.float32) -> FoldedHead:
    """Fold the head of a trained model; composed in float64, returned in `dtype`.

    1. q = P^T w: nothing nonlinear lies between P and F_att; every bias there cancels in the softmax. The other
       kinds of attention are the operator with constants of their own (`Decoupling.attention_operands`).
    2. The attention weights add up to 1, so the map to E moves before the pooling.
    3. With projected pooling that map meets U: g = f (U M) + m. u and g come from one product on f.
    4. The text features are constants: unit norm, times 1/tau.

    Fused pooling takes only 1 and 4: tanh lies between U and its map to E, which stays behind the pooling.
    """
    head = copy.deepcopy(model.decoupling).double()
    to_u, bias_u, v, q = head.attention_operands(model.words.double())  # [K,D], [K] or None, [C,K], [K]
    if head.pooling == "fused":
        return _folded(
            dtype,
            (to_u.T.contiguous(), to_u.new_zeros(len(to_u)), v, q, model.text_features()),
            (head.to_embedding.weight.T.contiguous(), head.to_embedding.bias),
        )
    to_g = head.to_embedding.weight  # [E,K] or [E,D]
    if head.pooling == "projected":
        to_g = to_g @ head.image_projection.weight  # [E,D]
    bias_u = to_u.new_zeros(len(to_u)) if bias_u is None else bias_u
    weight = torch.cat([to_u, to_g]).T.contiguous()  # [D,K+E]
    bias = torch.cat([bias_u, head.to_embedding.bias])  # [K+E]
    return _folded(dtype, (weight, bias, v, q, model.text_features()))


def _folded(
    dtype: torch.dtype, own: tuple[torch.Tensor, ...], to_embedding: tuple[torch.Tensor, torch.Tensor] | None = None
) -> FoldedHead:
    """A head of these tensors, in `dtype` on the CPU."""
    weight, bias, v, q, t = (tensor.to("cpu", dtype) for tensor in own)
    if to_embedding is None:
        return FoldedHead(weight, bias, v, q, t)
    mapped, offset = (tensor.to("cpu", dtype) for tensor in to_embedding)
    return FoldedHead(weight, bias, v, q, t, (mapped, offset))
