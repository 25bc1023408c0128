"""Prompts: learned vectors before a category's name, through the frozen text encoder (eq. 7-8)."""

import torch
from torch import nn
from torch.nn import functional as F

from sdpl.errors import UserError, listed
from sdpl.train.config import ModelConfig
from sdpl.train.encoders import FrozenClip

PLACEHOLDER = "X"  # one token; its embedding is replaced by a learned vector


class PromptLearner(nn.Module):
    """Text features of the categories, [C,E] with unit norm.

    "category-specific": M free vectors for each category; "shared": M vectors for all (CoOp);
    "manual": a written sentence, nothing to learn (zero-shot).
    """

    def __init__(self, encoder: FrozenClip, categories: tuple[str, ...], config: ModelConfig):
        super().__init__()
        self.kind = config.prompts
        if self.kind == "manual":
            sentences = [config.manual_prompt.replace("{}", name) for name in categories]
        else:
            sentences = [" ".join([PLACEHOLDER] * config.prompt_tokens + [f"{name}."]) for name in categories]
        tokens, end = _tokenize(encoder, sentences, categories)  # [C,T], [C]
        self.register_buffer("end", end, persistent=False)
        self.register_buffer("tokens", tokens, persistent=False)
        if self.kind == "manual":
            return
        rows = len(categories) if self.kind == "category-specific" else 1
        width = encoder.text.token_embedding.weight.shape[1]
        self.context = nn.Parameter(torch.empty(rows, config.prompt_tokens, width))  # [C or 1,M,d]
        nn.init.normal_(self.context, std=0.02)

    def forward(self, encoder: FrozenClip) -> torch.Tensor:
        x = encoder.text.token_embedding(self.tokens)  # [C,T,d]
        if self.kind != "manual":
            context = self.context.expand(len(x), -1, -1)  # [C,M,d]
            x = torch.cat([x[:, :1], context, x[:, 1 + context.shape[1] :]], dim=1)  # [C,T,d]
        return F.normalize(encoder.encode_embeddings(x, self.end), dim=-1)  # [C,E]


def _tokenize(encoder: FrozenClip, sentences: list[str], categories: tuple[str, ...]):
    """Tokens int [C,T] cut after the longest sentence, and the position of each end-of-text token [C]."""
    tokens = encoder.tokenize(sentences)  # [C,context]
    end = tokens.argmax(dim=1)  # [C]
    context_length = tokens.shape[1]
    encoded = [len(encoder.tokenize.encode(sentence)) + 2 for sentence in sentences]  # with start and end of text
    too_long = [name for name, length in zip(categories, encoded, strict=True) if length > context_length]
    if too_long:
        raise UserError(
            f"the prompts of {listed(too_long)} need more than the text tower's {context_length} tokens: "
            "lower model.prompt_tokens or shorten the names."
        )
    return tokens[:, : int(end.max()) + 1], end
