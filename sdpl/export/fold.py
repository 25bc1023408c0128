"""The fold: why the exported head is small. Exact algebra on the trained parameters (design, section 3)."""

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

    1. q = P^T w: nothing nonlinear lies between P and F_att; every bias there cancels in the softmax.
    2. The attention weights add up to 1, so the map to E moves before the pooling.
    3. With projected pooling that map meets U: g = f (U M) + m. u and g come from one product on f.
    4. The text features are constants: unit norm, times 1/tau.
    """
    head = model.decoupling
    to_u = head.image_projection.weight.double().T  # [D,K]
    to_e = head.to_embedding.weight.double().T  # [K,E] or [D,E]
    to_g = to_u @ to_e if head.pooling == "projected" else to_e  # [D,E]
    bias = torch.cat([torch.zeros(to_u.shape[1], dtype=torch.float64), head.to_embedding.bias.double().cpu()])  # [K+E]
    v = model.words.double() @ head.word_projection.weight.double().T  # [C,K]
    q = (head.attention.weight.double() @ head.joint.weight.double())[0]  # [K]
    tensors = (torch.cat([to_u, to_g], dim=1), bias, v, q, model.text_features())
    return FoldedHead(*(tensor.to("cpu", dtype) for tensor in tensors))
