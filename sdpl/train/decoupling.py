"""Semantic decoupling: one embedding per category from the image's map, by word-guided attention (section 3.2)."""

import torch
from torch import nn

from sdpl.kernels.reference import attention_pool
from sdpl.kernels.torch_op import attention_scores


class SemanticDecoupling(nn.Module):
    """Low-rank bilinear attention over locations, with separate parameters as the paper trains them.

    The parameters of eq. 3-6 are kept apart; `operands` composes them into the operator's inputs, so training
    and the exported model compute the same thing. The biases of `joint` and `attention` cancel in the softmax
    and get no gradient; they exist because the paper counts them.
    """

    def __init__(self, channels: int, word_dim: int, joint_dim: int, embed_dim: int, pooling: str):
        super().__init__()
        self.pooling = pooling
        self.image_projection = nn.Linear(channels, joint_dim, bias=False)  # U
        self.word_projection = nn.Linear(word_dim, joint_dim, bias=False)  # V
        self.joint = nn.Linear(joint_dim, joint_dim)  # P, b
        self.attention = nn.Linear(joint_dim, 1)  # F_att
        self.to_embedding = nn.Linear(joint_dim if pooling == "projected" else channels, embed_dim)

    def operands(self, f: torch.Tensor, words: torch.Tensor):
        """u [B,L,K], v [C,K], q [K], g [B,L,E] from f [B,L,D] and word vectors [C,W]."""
        u = self.image_projection(f)  # [B,L,K]
        v = self.word_projection(words)  # [C,K]
        q = (self.attention.weight @ self.joint.weight)[0]  # [K]
        g = self.to_embedding(u if self.pooling == "projected" else f)  # [B,L,E]
        return u, v, q, g

    def forward(self, f: torch.Tensor, words: torch.Tensor, t: torch.Tensor):
        """logits [B,C] and attention [B,C,L] from f [B,L,D], word vectors [C,W], scaled text features t [C,E]."""
        u, v, q, g = self.operands(f, words)
        return attention_pool(attention_scores(u, v, q), g, t)
