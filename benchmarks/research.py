"""The research formulation of the head, as published code of this field computes it: what sdpl is measured against.

Every location is paired with every category, P is applied to each pair, and pooling comes before the map:
B*L*C*K values exist several times over.
"""

import torch
from torch import nn
from torch.nn import functional as F

D, W, K, E, L = 2048, 300, 1024, 512, 49  # CLIP RN101 at 448 pixels, the paper's head


class ResearchHead(nn.Module):
    """f [B,L,D] -> logits [B,C]."""

    def __init__(self, categories: int, D: int = D, K: int = K, E: int = E):
        super().__init__()
        self.image_projection = nn.Linear(D, K, bias=False)
        self.word_projection = nn.Linear(W, K, bias=False)
        self.joint = nn.Linear(K, K)
        self.attention = nn.Linear(K, 1)
        self.to_embedding = nn.Linear(K, E)
        self.register_buffer("words", torch.randn(categories, W))
        self.register_buffer("text", torch.randn(categories, E))

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        u, v = self.image_projection(f), self.word_projection(self.words)  # [B,L,K], [C,K]
        pairs = torch.tanh(u[:, :, None, :] * v[None, None])  # [B,L,C,K]
        scores = self.attention(self.joint(pairs))  # [B,L,C,1]
        attention = scores.softmax(dim=1)  # [B,L,C,1]
        pooled = (attention * u[:, :, None, :]).sum(dim=1)  # [B,C,K]
        return 20 * F.cosine_similarity(self.to_embedding(pooled), self.text[None], dim=-1)  # [B,C]
