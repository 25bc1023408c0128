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

    @property
    def joint_dim(self) -> int:
        return len(self.q)

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """The operator's constants v [C,K], q [K], t [C,E]."""
        return {"v": self.v.numpy(), "q": self.q.numpy(), "t": self.t.numpy()}


@torch.no_grad()
def fold(model: PartialLabelModel, dtype: torch.dtype = torch.float32) -> FoldedHead:
    """Fold the head of a trained model; composed in float64, returned in `dtype`.

    1. q = P^T w: nothing nonlinear lies between P and F_att; every bias there cancels in the softmax. The other
       kinds of attention are the operator with constants of their own (`Decoupling.attention_operands`).
    2. The attention weights add up to 1, so the map to E moves before the pooling.
    3. With projected pooling that map meets U: g = f (U M) + m. u and g come from one product on f.
    4. The text features are constants: unit norm, times 1/tau.
    """
    head = copy.deepcopy(model.decoupling).double()
    to_u, bias_u, v, q = head.attention_operands(model.words.double())  # [K,D], [K] or None, [C,K], [K]
    to_g = head.to_embedding.weight  # [E,K] or [E,D]
    if head.pooling == "projected":
        to_g = to_g @ head.image_projection.weight  # [E,D]
    bias_u = to_u.new_zeros(len(to_u)) if bias_u is None else bias_u
    weight = torch.cat([to_u, to_g]).T.contiguous()  # [D,K+E]
    bias = torch.cat([bias_u, head.to_embedding.bias])  # [K+E]
    return FoldedHead(*(tensor.to("cpu", dtype) for tensor in (weight, bias, v, q, model.text_features())))
