"""Encoder weights: what a file holds, which activation it was trained with, and whether it fits the architecture.

Three kinds of file: OpenAI's TorchScript archives (`RN101.pt` as published), PyTorch state dicts, and safetensors.
"""

import logging
import urllib.error
import urllib.request
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sdpl.errors import UserError, nearest
from sdpl.train.config import ModelConfig
from sdpl.train.model.weights_bounds import read_code, require_file, require_pickles, require_tensors

State = dict[str, torch.Tensor]
NETWORK_S = 3  # seconds after which the network counts as unreachable
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # that TorchScript archives carry
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, UnpicklingError, SafetensorError)
DOWNLOADED = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a repository on the Hub


@dataclass(frozen=True)
class WeightsFile:
    """kind: "TorchScript archive", "state dict" or "safetensors". quick_gelu: whether its code says so; None where a
    file holds no code."""

    kind: str
    state: State
    quick_gelu: bool | None


def read_weights(path: Path) -> WeightsFile:
    """The tensors of a file, on the CPU. Runs no Python from it, but PyTorch's own reader of TorchScript archives,
    which is native code (SECURITY.md). Raises UserError for anything that is no weights."""
    try:
        require_file(path)
        weights = _read(path)
        require_tensors(weights.state, path)
        return weights
    except MemoryError:
        raise
    except Exception as error:  # torch raises of any kind for damaged files
        is_foreign = isinstance(error, UnpicklingError | LookupError | AttributeError)
        reason = "it is no file of tensors" if is_foreign else _first_line(error)
        raise UserError(f"{path}: cannot be loaded as weights ({reason}).") from None


def _read(path: Path) -> WeightsFile:
    if path.suffix == ".safetensors":
        return WeightsFile("safetensors", load_file(path), None)
    code = _torchscript_code(path)
    if code is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is no longer developed; the published files stay
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        state = {name: tensor for name, tensor in state.items() if name.split(".")[-1] not in NOT_WEIGHTS}
        return WeightsFile("TorchScript archive", state, "gelu(" not in code)
    content = torch.load(path, map_location="cpu", weights_only=True)
    content = content.get("state_dict", content)
    state = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    if not state or not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise ValueError("it is no state dict: not all of its values are tensors")
    return WeightsFile("state dict", state, None)


def _torchscript_code(path: Path) -> str | None:
    """The code inside a TorchScript archive, as text; None for any other file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return None
        code = read_code(archive)
        require_pickles(archive)
        return code


def find_weights(config: ModelConfig) -> Path | None:
    """The file of the weights that the configuration names: its own, or an open_clip tag's from the cache or the
    network; None for random weights. Raises UserError in seconds when it is nowhere."""
    if config.weights is None:
        return None
    path = Path(config.weights)
    return path if path.is_file() else _downloaded(config)


def load_weights(clip: nn.Module, config: ModelConfig, path: Path) -> None:
    """Load what `find_weights` found.

    Raises UserError naming the first tensor that differs when it is of another architecture.
    """
    state = _as_open_clip(read_weights(path).state, clip)
    difference = first_difference(state, clip.state_dict())
    if difference:
        raise UserError(
            f"model.weights = {config.weights!r} cannot be loaded for {config.backbone}: {difference}. "
            "`sdpl-info --weights FILE` says what a file is."
        )
    clip.load_state_dict(state)


def quick_gelu(config: ModelConfig, model_cfg: dict[str, Any]) -> bool | None:
    """Whether the model is to be built with QuickGELU, from what is known of its weights; None leaves the architecture
    as it is defined. Raises UserError when a file cannot say it and nobody else does."""
    if config.quick_gelu is not None:
        return config.quick_gelu
    if config.weights is None:
        return None
    path = Path(config.weights)
    if not path.is_file():
        return True if pretrained_tag(config).get("quick_gelu") else None
    said = read_weights(path).quick_gelu if path.suffix != ".safetensors" else None
    if said is not None:
        return said
    if config.backbone_config is not None or "quick_gelu" in model_cfg:  # the definition says it
        return None
    raise UserError(
        f"model.weights = {config.weights!r}: tensors alone do not say whether {config.backbone} was trained with "
        " QuickGELU: set model.quick_gelu: true (OpenAI's weights, and names with -quickgelu) or false."
    )


def require_architecture(backbone: str) -> None:
    """Raise UserError for a name that open_clip does not know."""
    if open_clip.get_model_config(backbone) is None:
        hint = nearest(backbone, open_clip.list_models())
        raise UserError(f"model.backbone = {backbone!r} is no open_clip model; {hint}")


def pretrained_tag(config: ModelConfig) -> dict[str, Any]:
    """open_clip's record of a weights tag; empty for a file or random weights."""
    if config.weights is None or Path(config.weights).is_file():
        return {}
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(config.backbone, config.weights)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(config.backbone)
        if not known:
            if config.backbone_config is None:
                require_architecture(config.backbone)
            raise UserError(
                f"model.weights = {config.weights!r} is no file, and for {config.backbone} no weights are published: "
                "name a file, or null for random ones."
            )
        raise UserError(
            f"model.weights = {config.weights!r} is neither a file nor a tag of {config.backbone}; "
            + nearest(config.weights, known)
        )
    return tag


def first_difference(state: State, wanted: State) -> str | None:
    """The first tensor, in the model's order, that is missing, has another shape, or is not the model's."""
    for name, tensor in wanted.items():
        if name not in state:
            return f"it has no {name} {list(tensor.shape)}"
        if state[name].shape != tensor.shape:
            return f"its {name} is {list(state[name].shape)}, the model's is {list(tensor.shape)}"
    extra = next((name for name in state if name not in wanted), None)
    return extra and f"its {extra} {list(state[extra].shape)} has no place in the model"


def _as_open_clip(state: State, clip: nn.Module) -> State:
    """The state under open_clip's names, float32, with position embeddings resized to the model's image size."""
    state = convert_state_dict(clip, state)
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, own in clip.state_dict().items():  # scalars: 0-d in some files, one entry in others
        if name in state and state[name].numel() == own.numel() == 1:
            state[name] = state[name].reshape(own.shape)
    resize_pos_embed(state, clip)
    for name in ("positional_embedding", "text.positional_embedding"):  # of another width they are another architecture
        own = clip.state_dict().get(name)
        if own is not None and name in state and state[name].shape[1:] == own.shape[1:]:
            resize_text_pos_embed(state, clip)
    _resize_timm_positions(state, clip.visual)
    return state


def _resize_timm_positions(state: State, visual: Any) -> None:
    """As open_clip does for its own ViTs."""
    name = "visual.trunk.pos_embed"
    own = getattr(getattr(visual, "trunk", None), "pos_embed", None)
    if own is None or name not in state or state[name].shape == own.shape or state[name].ndim != 3:
        return
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = visual.trunk.patch_embed.grid_size
    prefix = own.shape[1] - grid[0] * grid[1]
    if state[name].shape[2] == own.shape[2]:
        state[name] = resample_abs_pos_embed(state[name], list(grid), num_prefix_tokens=prefix)


def _downloaded(config: ModelConfig) -> Path:
    """The file of a tag, from the cache or the network."""
    tag = pretrained_tag(config)
    repository = tag.get("hf_hub", "").rstrip("/")
    path = _in_cache(repository) if repository else None
    if path is not None:
        return path
    if not repository or _reachable():
        try:
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
            return Path(open_clip.download_pretrained(tag))
        except UNREADABLE:
            pass
    url = tag.get("url") or f"https://huggingface.co/{repository}"
    raise UserError(
        f"model.weights = {config.weights!r} is not on this machine and cannot be downloaded: fetch {url} elsewhere, "
        "put the file anywhere here, and set model.weights to its path; or model.weights=null, random ones, to try "
        "the rest."
    )


def _in_cache(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in DOWNLOADED:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _reachable() -> bool:
    """Whether the Hub answers within a few seconds; the downloader alone would try for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False

    def ask() -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=NETWORK_S).close()
        except urllib.error.HTTPError:
            return True  # it answers, though not with a page
        except (OSError, ValueError):
            return False
        return True

    pool = ThreadPoolExecutor(1)  # looking up a name has no timeout of its own
    try:
        return pool.submit(ask).result(timeout=NETWORK_S)
    except FutureTimeout:
        return False
    finally:
        pool.shutdown(wait=False)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
