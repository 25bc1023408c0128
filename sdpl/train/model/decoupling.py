"""Semantic decoupling: one embedding per category, by attention over the locations of the image's map (section 3.2)."""

import torch
from torch import nn
from torch.nn import functional as F

from sdpl.kernels.reference import attention_pool
from sdpl.kernels.torch_op import attention_logits

CONVOLUTIONAL_SCALE = 4.0  # exp(2 * 4): at first, one location can already outweigh the other hundreds


class Decoupling(nn.Module):
    """Attention over locations, then pooling and the map to the text dimension (eq. 3-6). `kind` of attention:

        "semantic"        s_cl = w P tanh(U f_l * V x_c)       the paper's: guided by the category's word vector x_c
        "convolutional"   s_cl = scale_c tanh(h_c f_l + b_c)   figure 4's comparison: a 1x1 convolution gives each
                                                               category a map; no word takes part
        "none"            s_cl = 0                             every location counts alike

    All three are the one operator of `sdpl.kernels` (the convolutional one with u = h f + b, v = identity,
    q = scale), so training, export and serving treat them alike. What is pooled is y = U f (`pooling: projected`)
    or y = f ("trunk"). The biases of `joint` and `attention` cancel in the softmax and get no gradient; they exist
    because the paper counts them.
    """

    def __init__(
        self, channels: int, categories: int, word_dim: int, joint_dim: int, embed_dim: int, kind: str, pooling: str
    ):
        super().__init__()
        self.kind, self.pooling = kind, pooling
        if kind == "semantic" or pooling == "projected":
            self.image_projection = nn.Linear(channels, joint_dim, bias=False)  # U
        if kind == "semantic":
            self.word_projection = nn.Linear(word_dim, joint_dim, bias=False)  # V
            self.joint = nn.Linear(joint_dim, joint_dim)  # P, b
            self.attention = nn.Linear(joint_dim, 1)  # F_att
        elif kind == "convolutional":
            self.convolution = nn.Linear(channels, categories)  # h, b: a 1x1 convolution is a linear layer
            self.scale = nn.Parameter(torch.full((categories,), CONVOLUTIONAL_SCALE))
        self.to_embedding = nn.Linear(joint_dim if pooling == "projected" else channels, embed_dim)

    def attention_operands(
        self, words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """The linear layer that gives u (weight [K,D], bias [K] or None), and v [C,K], q [K], from words [C,W].

        K is the joint dimension, the number of categories ("convolutional"), or 1 ("none").
        """
        if self.kind == "semantic":
            q = (self.attention.weight @ self.joint.weight)[0]  # [K]
            return self.image_projection.weight, None, self.word_projection(words), q
        if self.kind == "convolutional":
            identity = torch.eye(len(self.scale), dtype=self.scale.dtype, device=self.scale.device)  # [C,C]
            return self.convolution.weight, self.convolution.bias, identity, self.scale
        zeros = self.to_embedding.weight.new_zeros
        channels = (self.to_embedding if self.pooling == "trunk" else self.image_projection).in_features
        return zeros(1, channels), None, zeros(len(words), 1), zeros(1)

    def operands(
        self, f: torch.Tensor, words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """u [B,L,K], v [C,K], q [K], g [B,L,E] from f [B,L,D] and word vectors [C,W]."""
        weight, bias, v, q = self.attention_operands(words)
        u = F.linear(f, weight, bias)  # [B,L,K]
        if self.pooling == "trunk":
            return u, v, q, self.to_embedding(f)
        y = u if self.kind == "semantic" else self.image_projection(f)  # [B,L,joint]
        return u, v, q, self.to_embedding(y)

    def forward(self, f: torch.Tensor, words: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B,C] and attention [B,C,L] from f [B,L,D], word vectors [C,W], scaled text features t [C,E]."""
        u, v, q, g = self.operands(f, words)
        return attention_pool(attention_logits(u, v, q), g, t)
