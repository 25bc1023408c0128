"""CLIP's two encoders, frozen, from any open_clip configuration: image to spatial map, prompt to text feature."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Protocol

import open_clip
import torch
from torch import nn
from torch.nn import functional as F

from sdpl.errors import UserError
from sdpl.train.config import ModelConfig
from sdpl.train.model.weights import pretrained_tag, quick_gelu, require_architecture

MAX_JSON = 1 << 20  # bytes of the definition of a backbone


class TextTower(Protocol):
    """What is used of open_clip's text tower."""

    token_embedding: nn.Embedding
    positional_embedding: torch.Tensor
    transformer: nn.Module
    attn_mask: torch.Tensor
    ln_final: nn.Module
    text_projection: torch.Tensor | nn.Linear


class FrozenClip(nn.Module):
    """A CLIP model that stays in eval mode and takes no gradient: BatchNorm statistics must not drift."""

    clip: Any  # of open_clip, which ships no types
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, clip_config: dict[str, Any], map_pool: int):
        """clip_config: what `clip_config` returns. map_pool: side of the average pooling over the map."""
        super().__init__()
        self.map_pool, self.clip_config = map_pool, clip_config
        self.clip, self.tokenize = _build(clip_config)
        preprocess = clip_config["preprocess_cfg"]
        self.register_buffer("mean", 255 * torch.tensor(preprocess["mean"]).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(preprocess["std"]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    @property
    def text(self) -> TextTower:
        """The text tower; CustomTextCLIP keeps it apart, CLIP is its own."""
        tower: TextTower = getattr(self.clip, "text", self.clip)
        return tower

    def train(self, mode: bool = True) -> "FrozenClip":
        return super().train(False)

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """The trunk's map, average-pooled: uint8 [B,S,S,3] -> [B,D,h,w]."""
        return F.avg_pool2d(self.unpooled_map(images), self.map_pool)

    def unpooled_map(self, images: torch.Tensor) -> torch.Tensor:
        """The trunk's map before CLIP's own pooling: uint8 [B,S,S,3] -> [B,D,H,W]."""
        pixels = images.to(self.mean.dtype).permute(0, 3, 1, 2)  # [B,3,S,S]; TensorRT transposes no uint8
        x = (pixels - self.mean) / self.std  # [B,3,S,S]
        maps = self.clip.visual.forward_intermediates(
            x, indices=1, normalize_intermediates=True, intermediates_only=True
        )
        last: torch.Tensor = maps["image_intermediates"][-1]  # [B,D,H,W]
        return last

    def locations(self, images: torch.Tensor) -> torch.Tensor:
        """f [B,L,D] from images uint8 [B,S,S,3]."""
        return self.feature_map(images).flatten(2).transpose(1, 2)

    def map_shape(self, image_size: int) -> tuple[int, int, int]:
        """D, height and width of the map, from one black image."""
        with torch.no_grad():
            image = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8, device=self.mean.device)
            channels, height, width = self.unpooled_map(image).shape[1:]
        stride = self.stride()
        if stride and image_size % stride:
            fits = max(image_size // stride, 1) * stride
            raise UserError(
                f"model.image_size = {image_size}: the trunk's cells are {stride} pixels wide and would not end at the "
                f"image's edge; take {fits} or {fits + stride}."
            )
        if min(height, width) < self.map_pool:
            raise UserError(
                f"model.map_pool = {self.map_pool}: the map of a {image_size}-pixel image is only {height}x{width}; "
                "lower map_pool or raise image_size."
            )
        if height % self.map_pool or width % self.map_pool:
            pools = [str(n) for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
            step = (stride or image_size // height) * self.map_pool
            fits = max(image_size // step, 1) * step
            raise UserError(
                f"model.map_pool = {self.map_pool} does not divide the {height}x{width} map of a {image_size}-pixel "
                f"image, whose last row and column would be lost: take map_pool {' or '.join(pools)}, or image_size "
                f"{fits} or {fits + step}."
            )
        return channels, height // self.map_pool, width // self.map_pool

    def stride(self) -> int | None:
        """Pixels of the image for each cell of the trunk's map; None where the tower does not say."""
        visual = self.clip.visual
        if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
            return 32
        patch = getattr(visual, "patch_size", None) or getattr(
            getattr(getattr(visual, "trunk", None), "patch_embed", None), "patch_size", None
        )
        if patch:
            return int(patch[0])
        stages = getattr(getattr(visual, "trunk", None), "feature_info", None)
        return int(stages[-1]["reduction"]) if stages else None

    def encode_embeddings(self, x: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Text features [C,E] of token embeddings x [C,T,d], read at position end [C]. T may be less than the
        context length: the tower is causal, so positions after the last `end` cannot matter."""
        text, length = self.text, x.shape[1]
        x = x + text.positional_embedding[:length]  # [C,T,d]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))  # [C,T,d]
        x = x[torch.arange(len(x), device=x.device), end]  # [C,d]
        projection = text.text_projection
        features: torch.Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection  # [C,E]
        return features

    def encode_sentences(self, sentences: list[str], chunk: int = 256) -> torch.Tensor:
        """Unit-norm text features [N,E] of plain sentences."""
        features = []
        with torch.no_grad():
            for start in range(0, len(sentences), chunk):
                tokens = self.tokenize(sentences[start : start + chunk]).to(self.mean.device)  # [n,context]
                end = tokens.argmax(dim=1)  # [n]; the end-of-text token has the highest id
                tokens = tokens[:, : int(end.max()) + 1]  # [n,T]
                features.append(self.encode_embeddings(self.text.token_embedding(tokens), end))
        return F.normalize(torch.cat(features), dim=-1)  # [N,E]


def clip_config(config: ModelConfig) -> dict[str, Any]:
    """Everything that defines the architecture: {"model_cfg", "preprocess_cfg"}, plain values for the checkpoint.

    OpenAI's weights were trained with QuickGELU, which open_clip only switches on for names that say so; here what is
    known of the weights decides (`weights.quick_gelu`). Raises UserError for an unknown backbone or tag.
    """
    if config.backbone_config is not None:
        model_cfg = _read_json(Path(config.backbone_config))
    else:
        require_architecture(config.backbone)
        model_cfg = open_clip.get_model_config(config.backbone)
    text_cfg = model_cfg["text_cfg"]
    if any(text_cfg.get(key) for key in ("hf_model_name", "hf_tokenizer_name", "no_causal_mask", "embed_cls")):
        raise UserError(
            f"model.backbone = {config.backbone!r}: its text tower is not CLIP's causal transformer, for which prompts "
            "are learned; choose a plain CLIP backbone, such as RN101 or ViT-B-16."
        )
    is_resnet = isinstance(model_cfg["vision_cfg"].get("layers"), list)
    if not is_resnet:  # a ViT's position embeddings depend on the size; a ResNet's only in the unused pooling
        model_cfg = {**model_cfg, "vision_cfg": {**model_cfg["vision_cfg"], "image_size": config.image_size}}
    tag, activation = pretrained_tag(config), quick_gelu(config, model_cfg)
    if activation is not None:
        model_cfg["quick_gelu"] = activation
    preprocess_cfg = {
        "mean": list(tag.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(tag.get("std") or open_clip.OPENAI_DATASET_STD),
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


def _build(clip_config: dict[str, Any]) -> tuple[nn.Module, Any]:
    """The model with random weights, and its tokenizer. open_clip reads both from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(clip_config), encoding="utf-8")
        name = f"local-dir:{folder}"
        logging.disable(logging.WARNING)  # it warns that the weights are random, which is what is wanted
        try:
            model = open_clip.create_model(name, load_weights=False)
            _resize_timm(model.visual, clip_config["model_cfg"]["vision_cfg"])
            return model, open_clip.get_tokenizer(name)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"open_clip cannot build the backbone from its configuration ({error}).") from error
        finally:
            logging.disable(logging.NOTSET)


def _resize_timm(visual: Any, vision_cfg: dict[str, Any]) -> None:
    """Build a timm ViT for the configured image size; open_clip builds it at its own."""
    if hasattr(getattr(visual, "trunk", None), "set_input_size"):
        visual.set_input_size(vision_cfg["image_size"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with open(path, "rb") as stream:
            text = stream.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON >> 20} MB")
        content: dict[str, Any] = json.loads(text)
        dict(content["vision_cfg"]), dict(content["text_cfg"]), int(content["embed_dim"])
        return content
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"model.backbone_config = {str(path)!r} is not an open_clip model config ({error}).") from None
