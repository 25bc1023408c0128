"""Semantic decoupling: one embedding per category, by attention over the locations of the image's map (section 3.2)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from sdpl.kernels.reference import attention_pool, mean_embedding
from sdpl.kernels.torch_op import attention_logits
from sdpl.train.model.fused import fused_attention_pool, mask_pool

Operands = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]

SPREAD_CATEGORIES = 256  # that the spread of the attention logits is measured over, at most


class Decoupling(nn.Module):
    """Attention over locations, then pooling and the map to the text dimension (eq. 3-6). `kind` of attention:

        "semantic"        s_cl = w P tanh(U f_l * V x_c)       the paper's: guided by the category's word vector x_c
        "convolutional"   s_cl = scale_c tanh(h_c f_l + b_c)   figure 4's comparison: a 1x1 convolution gives each
                                                               category a map; no word takes part
        "sigmoid-mask"    a_cl = sigmoid(h_c f_l + b_c)        the same comparison as the paper that it comes from has
                                                               it: masks as weights, without a softmax
        "none"            s_cl = 0                             every location counts alike

    All but the sigmoid mask are the one operator of `sdpl.kernels` (the convolutional one with u = h f + b,
    v = identity, q = scale), so training, export and serving treat them alike. What is pooled is y = U f (`pooling:
    projected`), y = f ("trunk"), or y_c = tanh(U f * V x_c) ("fused", an operator of its own). The biases of `joint`
    and `attention` cancel in the softmax and get no gradient; they exist because the paper counts them.
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
        elif kind in ("convolutional", "sigmoid-mask"):
            self.convolution = nn.Linear(channels, categories)  # h, b: a 1x1 convolution is a linear layer
        if kind == "convolutional":
            self.scale = nn.Parameter(torch.ones(categories))
        self.to_embedding = nn.Linear(channels if pooling == "trunk" else joint_dim, embed_dim)

    def attention_operands(self, words: torch.Tensor) -> Operands:
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
        y = u if self.kind == "semantic" and self.pooling == "projected" else self._pooled_values(f)
        return u, v, q, self.to_embedding(y)

    def forward(self, f: torch.Tensor, words: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B,C] and attention [B,C,L] from f [B,L,D], word vectors [C,W], scaled text features t [C,E]."""
        if self.kind == "sigmoid-mask":
            return mask_pool(self.convolution(f).transpose(1, 2), self.to_embedding(self._pooled_values(f)), t)
        if self.pooling == "fused":
            weight, bias, v, q = self.attention_operands(words)
            return fused_attention_pool(F.linear(f, weight, bias), v, q, self.to_embedding, t)
        u, v, q, g = self.operands(f, words)
        return attention_pool(attention_logits(u, v, q), g, t)

    def embedding(self, f: torch.Tensor) -> torch.Tensor:
        """e [B,E] of whole images, of unit length, from f [B,L,D]. Fused pooling has no g, and so none."""
        e: torch.Tensor = mean_embedding(self.to_embedding(self._pooled_values(f)))
        return e

    @torch.no_grad()
    def spread(self, f: torch.Tensor, words: torch.Tensor) -> float:
        """Standard deviation of the attention logits over the locations, root mean square over images and categories,
        on maps f [B,L,D]. 0 for attention without logits."""
        if self.kind not in ("semantic", "convolutional"):
            return 0.0
        weight, bias, v, q = self.attention_operands(words)
        v = v[:: -(-len(v) // SPREAD_CATEGORIES)]  # evenly taken; thousands say no more than a few hundred
        s = attention_logits(F.linear(f, weight, bias), v, q)  # [B,c,L]
        return float(s.var(dim=-1, correction=0).mean().sqrt())

    @torch.no_grad()
    def scale_attention(self, factor: float) -> None:
        """Multiply the attention logits by `factor`. P and F_att each take its root: their gradients rise alike."""
        if self.kind == "semantic":
            self.joint.weight.mul_(math.sqrt(factor))
            self.attention.weight.mul_(math.sqrt(factor))
        elif self.kind == "convolutional":
            self.scale.mul_(factor)

    def _pooled_values(self, f: torch.Tensor) -> torch.Tensor:
        """y [B,L,D] or [B,L,K]: what is pooled, before the map to the embedding dimension."""
        return f if self.pooling == "trunk" else self.image_projection(f)
