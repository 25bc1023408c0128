"""What a file of encoder weights is: its kind, its sizes, and the open_clip models that it fits."""

import re
from pathlib import Path
from typing import Any

import open_clip

from sdpl.errors import UserError
from sdpl.train.model.weights import State, read_weights


def describe_weights(path: Path) -> dict[str, str]:
    """Property -> value, for `sdpl-info --weights`. Raises UserError for a file that is no weights of a CLIP model."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}.")
    weights = read_weights(path)
    sizes = _sizes(weights.state)
    if "image tower" not in sizes:
        raise UserError(f"{path}: is a {weights.kind} of {len(weights.state)} tensors, but holds no CLIP image tower.")
    activation = {True: "QuickGELU", False: "GELU", None: "not in the file: set model.quick_gelu"}
    parameters = sum(tensor.numel() for tensor in weights.state.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.state.values()})
    names = [name for name in open_clip.list_models() if _fits(name, weights.state)]
    return {
        "file": str(path),
        "kind": weights.kind,
        "activation": activation[weights.quick_gelu],
        "tensors": f"{len(weights.state)}, {parameters / 1e6:.1f} million numbers, {', '.join(dtypes)}",
        **{key: str(value) for key, value in sizes.items()},
        "model.backbone": ", ".join(names) or "none of open_clip's plain ones; name a model.backbone_config",
    }


def _sizes(state: State) -> dict[str, Any]:
    """What the tensors' shapes say."""
    sizes: dict[str, Any] = {}
    conv = state.get("visual.conv1.weight")
    if conv is not None and "visual.layer1.0.conv1.weight" in state:
        sizes["image tower"] = f"ResNet, blocks {_blocks(state)}, width {len(state['visual.layer1.0.conv1.weight'])}"
    elif conv is not None:
        sizes["image tower"] = f"ViT, {_count(state, 'visual.transformer.resblocks')} layers, width {len(conv)}, " + (
            f"patch {conv.shape[-1]}"
        )
    elif any(name.startswith("visual.trunk.") for name in state):
        sizes["image tower"] = "of timm"
    text = "text." if "text.token_embedding.weight" in state else ""
    if f"{text}token_embedding.weight" in state:
        vocabulary, width = state[f"{text}token_embedding.weight"].shape
        layers = _count(state, f"{text}transformer.resblocks")
        context = len(state.get(f"{text}positional_embedding", ()))
        sizes["text tower"] = f"{layers} layers, width {width}, {vocabulary} tokens, context {context}"
    projection = state.get(f"{text}text_projection")
    if projection is not None:
        sizes["embedding"] = projection.shape[-1]
    return sizes


def _fits(name: str, state: State) -> bool:
    """Whether the sizes are those of an open_clip model with towers of CLIP's own kinds."""
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    conv, tokens = state.get("visual.conv1.weight"), state.get("token_embedding.weight")
    if conv is None or tokens is None or "layers" not in vision or "width" not in text:
        return False
    if isinstance(vision["layers"], list):
        if "visual.layer1.0.conv1.weight" not in state:
            return False
        same = _blocks(state) == vision["layers"] and len(state["visual.layer1.0.conv1.weight"]) == vision["width"]
    else:
        layers = _count(state, "visual.transformer.resblocks")
        same = (layers, *conv.shape[::3]) == (vision["layers"], vision["width"], vision.get("patch_size"))
        same = same and _image_size(state, conv.shape[-1]) == vision.get("image_size", 224)
    projection = state.get("text_projection")
    embed = None if projection is None else projection.shape[-1]
    own = (tokens.shape[1], _count(state, "transformer.resblocks"), embed)
    return bool(same) and own == (text["width"], text["layers"], config["embed_dim"])


def _image_size(state: State, patch: int) -> int | None:
    positions = state.get("visual.positional_embedding")
    return None if positions is None else round((len(positions) - 1) ** 0.5) * patch


def _blocks(state: State) -> list[int]:
    return [_count(state, f"visual.layer{i}") for i in range(1, 5)]


def _count(state: State, prefix: str) -> int:
    """How many numbered parts there are below a prefix."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})
