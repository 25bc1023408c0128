"""Prompts: learned vectors around a category's name, through the frozen text encoder (eq. 7-8)."""

import torch
from torch import nn
from torch.nn import functional as F

from sdpl.data.categories import as_text
from sdpl.errors import UserError, listed
from sdpl.train.config import ModelConfig
from sdpl.train.model.clip import FrozenClip

PLACEHOLDER = "X"  # one token; its embedding is replaced by a learned vector


class PromptLearner(nn.Module):
    """Text features of the categories, [C,E] with unit norm.

    "category-specific": M free vectors for each category; "shared": M vectors for all (CoOp);
    "manual": a written sentence, nothing to learn (zero-shot). The name comes after the learned vectors, in their
    middle, or before them (`class_token_position`, as in CoOp).
    "dual": two learned prompts for each category, of its presence and its absence (DualCoOp); what comes out is the
    difference of their features, so that sigmoid(logit) is the softmax over the two cosines.
    "vectors": no text: a free vector for each category, a linear classifier on the embedding (SSGRL, linear probe).
    """

    tokens: torch.Tensor  # [C,T]
    end: torch.Tensor  # [C]
    slots: torch.Tensor  # [C,M]

    def __init__(self, encoder: FrozenClip, categories: tuple[str, ...], config: ModelConfig):
        super().__init__()
        self.is_frozen, self.is_dual = config.prompts == "manual", config.prompts == "dual"
        self.has_text = config.prompts != "vectors"
        if not self.has_text:
            embed_dim = encoder.clip_config["model_cfg"]["embed_dim"]
            self.vectors = nn.Parameter(torch.randn(len(categories), embed_dim))  # [C,E]
            return
        names = [as_text(name) for name in categories]
        if self.is_frozen:
            sentences = [config.manual_prompt.replace("{}", name) for name in names]
        else:
            before = _tokens_before_name(config)
            after = config.prompt_tokens - before
            sentences = [_sentence(before, name, after) for name in names]
        tokens, end = _tokenize(encoder, sentences, categories)  # [C,T], [C]
        self.register_buffer("end", end, persistent=False)
        self.register_buffer("tokens", tokens, persistent=False)
        if self.is_frozen:
            return
        lengths = torch.tensor([len(encoder.tokenize.encode(name)) for name in names])  # [C]
        place = torch.arange(config.prompt_tokens).expand(len(names), -1)  # [C,M]
        slots = 1 + place + lengths[:, None] * (place >= before)  # [C,M]; token 0 starts the text
        self.register_buffer("slots", slots, persistent=False)
        rows = {"category-specific": len(names), "shared": 1, "dual": 2 * len(names)}[config.prompts]
        width = encoder.text.token_embedding.weight.shape[1]
        self.context = nn.Parameter(torch.empty(rows, config.prompt_tokens, width))  # [C, 1 or 2C,M,d]
        nn.init.normal_(self.context, std=0.02)

    def forward(self, encoder: FrozenClip) -> torch.Tensor:
        if not self.has_text:
            return F.normalize(self.vectors, dim=-1)  # [C,E]
        if self.is_dual:
            present, absent = self.context.chunk(2)  # [C,M,d] each
            return self._encode(encoder, present) - self._encode(encoder, absent)  # [C,E]
        return self._encode(encoder, None if self.is_frozen else self.context)

    def _encode(self, encoder: FrozenClip, context: torch.Tensor | None) -> torch.Tensor:
        """Unit-norm features [C,E] of the sentences, with the vectors [C or 1,M,d] in their slots."""
        x = encoder.text.token_embedding(self.tokens)  # [C,T,d]
        if context is not None:
            slots = self.slots[:, :, None].expand(-1, -1, x.shape[2])  # [C,M,d]
            x = x.scatter(1, slots, context.expand(len(x), -1, -1).to(x.dtype))  # [C,T,d]
        return F.normalize(encoder.encode_embeddings(x, self.end), dim=-1)  # [C,E]


def _tokens_before_name(config: ModelConfig) -> int:
    return {"end": config.prompt_tokens, "middle": config.prompt_tokens // 2, "front": 0}[config.class_token_position]


def _sentence(before: int, name: str, after: int) -> str:
    return " ".join([PLACEHOLDER] * before + [name] + [PLACEHOLDER] * after) + "."


def _tokenize(
    encoder: FrozenClip, sentences: list[str], categories: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
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
