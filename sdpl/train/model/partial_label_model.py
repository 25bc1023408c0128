"""The whole model: frozen CLIP, semantic decoupling, learned prompts, scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from sdpl.data.categories import as_text
from sdpl.train.config import ModelConfig
from sdpl.train.model.clip import FrozenClip, clip_config
from sdpl.train.model.decoupling import Decoupling
from sdpl.train.model.prompts import PromptLearner
from sdpl.train.model.weights import find_weights, load_weights
from sdpl.train.model.word_vectors import word_vectors
from sdpl.verification import Answers, Run

MIN_SPREAD = 1e-6  # below it the logits differ by rounding only


class PartialLabelModel(nn.Module):
    """images uint8 [B,S,S,3] -> logits [B,C]; `probabilities` turns these into scores in 0..1."""

    words: torch.Tensor  # [C,W]

    def __init__(
        self, config: ModelConfig, categories: tuple[str, ...], clip_config: dict[str, Any], words: torch.Tensor | None
    ):
        """words: [C,W] as a checkpoint holds them, or None for the vectors that the configuration names."""
        super().__init__()
        self.config = config
        self.categories = categories
        self.clip_config = clip_config
        self.encoder = FrozenClip(clip_config, config.map_pool)
        self.channels, *self.map_size = self.encoder.map_shape(config.image_size)
        embed_dim = clip_config["model_cfg"]["embed_dim"]
        word_dim = embed_dim if words is None else words.shape[1]
        self.register_buffer("words", torch.zeros(len(categories), word_dim) if words is None else words)  # [C,W]
        self.decoupling = Decoupling(
            self.channels, len(categories), word_dim, config.joint_dim, embed_dim, config.decoupling, config.pooling
        )
        self.prompts = PromptLearner(self.encoder, categories, config)
        self.log_inverse_temperature = nn.Parameter(
            torch.tensor(config.inverse_temperature).log(), requires_grad=config.learn_temperature
        )

    @property
    def map_shape(self) -> tuple[int, int]:
        """L and D of the encoder's map."""
        return self.map_size[0] * self.map_size[1], self.channels

    @property
    def inverse_temperature(self) -> torch.Tensor:
        return self.log_inverse_temperature.exp()

    def text_features(self, prompt_features: torch.Tensor | None = None) -> torch.Tensor:
        """The scaled text features t [C,E]: unit-norm prompts' features times 1/tau.

        prompt_features [C,E]: those of the prompts, when they are known and do not change.
        """
        features = self.prompts(self.encoder) if prompt_features is None else prompt_features
        return features * self.inverse_temperature

    def forward(self, images: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        """logits [B,C]. `t` may be given when the prompts do not change between calls."""
        return self.attend(images, t)[0]

    def attend(self, images: torch.Tensor, t: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B,C] and attention [B,C,L]."""
        with torch.no_grad():
            f = self.encoder.locations(images)  # [B,L,D]
        return self.pool(f, self.text_features() if t is None else t)

    def pool(self, f: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B,C] and attention [B,C,L] from the encoder's map f [B,L,D] and scaled text features t [C,E]."""
        pooled: tuple[torch.Tensor, torch.Tensor] = self.decoupling(f, self.words, t)
        return pooled

    def attention_factor(self, f: torch.Tensor) -> float:
        """What freshly drawn attention is to be scaled by (`Decoupling.scale_attention`), so that its logits spread
        over the locations by `model.attention_spread` on the maps f [B,L,D]. 1 where nothing can be scaled: attention
        without logits, one location, or equal ones."""
        wanted, spread = self.config.attention_spread, self.decoupling.spread(f, self.words)
        return wanted / spread if wanted is not None and spread > MIN_SPREAD else 1.0

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.config.probability == "sigmoid" else logits.softmax(dim=-1)

    @torch.no_grad()
    def scores(self, images: np.ndarray, t: torch.Tensor | None = None) -> np.ndarray:
        """float32 [B,C] from uint8 [B,S,S,3], as `sdpl.runtime.Recognizer.scores`."""
        batch = torch.from_numpy(images).to(self.words.device)
        return self.probabilities(self(batch, t)).float().cpu().numpy()

    def attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and attention [B,C,h,w] of uint8 [B,S,S,3], as `sdpl.runtime.Recognizer.attention`."""
        with torch.no_grad():
            logits, attention = self.attend(torch.from_numpy(images).to(self.words.device))
            scores = self.probabilities(logits).float().cpu().numpy()
        return scores, attention.float().cpu().numpy().reshape(*scores.shape, *self.map_size)

    @property
    def embedding_size(self) -> int | None:
        """E of `embeddings`; None where each category pools a map of its own, and there are none."""
        return None if self.config.pooling == "fused" else self.decoupling.to_embedding.out_features

    @torch.no_grad()
    def embeddings(self, images: np.ndarray, t: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and embeddings [B,E], of unit length, of uint8 [B,S,S,3], as
        `sdpl.runtime.Recognizer.embeddings`."""
        f = self.encoder.locations(torch.from_numpy(images).to(self.words.device))  # [B,L,D]
        logits, _ = self.pool(f, self.text_features() if t is None else t)  # [B,C]
        embeddings = self.decoupling.embedding(f)  # [B,E]
        return self.probabilities(logits).float().cpu().numpy(), embeddings.float().cpu().numpy()

    def answerer(self) -> Run:
        """Scores and, where there are some, embeddings, as `scorer`."""
        with torch.no_grad():
            t = self.text_features()
        if self.embedding_size is None:
            return lambda images: Answers(self.scores(images, t))
        return lambda images: Answers(*self.embeddings(images, t))

    def scorer(self) -> Callable[[np.ndarray], np.ndarray]:
        """`scores` with the text features computed once, for a model that no longer changes."""
        with torch.no_grad():
            t = self.text_features()
        return lambda images: self.scores(images, t)


def new_model(config: ModelConfig, categories: tuple[str, ...]) -> PartialLabelModel:
    """A model to train: encoder weights loaded, head and prompts freshly drawn from torch's global generator."""
    weights = find_weights(config)  # before anything that takes long
    words = None
    if config.word_vectors != "clip":
        words = torch.from_numpy(word_vectors(config.word_vectors, categories))  # [C,W]
    model = PartialLabelModel(config, categories, clip_config(config), words)
    if weights is not None:
        load_weights(model.encoder.clip, config, weights)
    if words is None:
        model.words.copy_(clip_word_vectors(model.encoder, categories))
    return model


def clip_word_vectors(encoder: FrozenClip, categories: tuple[str, ...]) -> torch.Tensor:
    """Word vectors [C,E] from CLIP's text tower, for names without GloVe vectors.

    CLIP's text features share a large common part, which would make all categories attend alike: it is
    removed (the mean over the categories), and what is left is scaled to a mean square of 1 per entry.
    """
    features = encoder.encode_sentences([f"a photo of a {as_text(name)}." for name in categories])  # [C,E]
    if len(categories) > 1:
        features = features - features.mean(dim=0)
    return features / features.pow(2).mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)  # [C,E]
