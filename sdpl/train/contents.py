"""What a checkpoint may hold: the boundary that a loaded file passes before anything is built from it.

Types, sizes, shapes and finiteness are checked here, once; behind it the code trusts. Since format 2 every tensor, and
all plain values together, must also have the SHA-256 that was written with them.
"""

import hashlib
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sdpl.data.categories import require_distinct
from sdpl.errors import UserError
from sdpl.text import shortened
from sdpl.train.config import Config, check_config

HASHES = "hashes"
PLAIN = "plain values"  # the one hash of everything that is no tensor
MAX_VALUES, MAX_DEPTH, MAX_TEXT = 2_000_000, 12, 1_000_000
MAX_CATEGORIES, MAX_PROOF_IMAGES = 100_000, 1024
MAX_LAYERS, MAX_SIZE = 1000, 1_000_000  # of numbers in the backbone's configuration
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def require_stored(path: Path) -> None:
    """Raise UserError for an archive that would unpack to more than its own size; torch writes none that do."""
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise UserError(f"{path}: is truncated or not a checkpoint; copy it again or train again.") from None
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path}: is a compressed archive, which sdpl-train does not write; it is not loaded.")


def hashes(content: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of every tensor by its place in the content, such as "state/words", and of all plain values."""
    plain, found = hashlib.sha256(), {}
    for place, value in _leaves({key: value for key, value in content.items() if key != HASHES}):
        if isinstance(value, torch.Tensor):
            digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            found[place] = digest.hexdigest()
        else:
            plain.update(f"{place} = {value!r}\n".encode("utf-8", "backslashreplace"))
    return {**found, PLAIN: plain.hexdigest()}


def check_contents(content: dict[str, Any], name: str, has_hashes: bool) -> Config:
    """The configuration of a checkpoint's content. Raises UserError naming the first thing that cannot be."""
    _require_bounded(content, name)
    if has_hashes:
        _require_hashes(content, name)
    for place, value in _leaves(content):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{name}: {place} has NaN or infinite values: the training diverged, or the file is damaged."
            )
    config = check_config(content["config"], name)
    categories = _check_categories(content, name)
    _check_tensors(content, config, categories, name)
    check_clip_config(content["clip_config"], content["state"], name)
    return config


def check_clip_config(clip_config: Any, state: dict[str, torch.Tensor], name: str) -> None:
    """Raise UserError for a backbone that would load something else, or be larger than the weights that it is for."""
    try:
        model, mean_and_std = clip_config["model_cfg"], clip_config["preprocess_cfg"]
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
        numbers = [float(x) for key in ("mean", "std") for x in mean_and_std[key]]
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
            raise ValueError("mean and std are not three numbers each")
        for place, value in _leaves(model):
            key = place.rpartition("/")[2]
            if isinstance(value, torch.Tensor):
                raise TypeError(f"{key} is a tensor")
            if value and (key.startswith("hf_") or "pretrained" in key) and key != "hf_proj_type":
                raise ValueError(f"{key} = {value!r} would load something else")
            if isinstance(value, str) and not re.fullmatch(r"[\w.\-]{0,200}", value):
                raise ValueError(f"{key} = {value!r} is no plain name")
            if isinstance(value, int | float) and not abs(value) <= (MAX_LAYERS if "layers" in place else MAX_SIZE):
                raise ValueError(f"{key} = {value!r} is too large")
        needed, held = 4 * _weights(vision, text), sum(t.numel() * t.element_size() for t in state.values())
        if needed > 8 * held:
            raise ValueError(f"it has {needed / 1e9:.1f} GB of weights, the file {held / 1e9:.1f} GB")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{name}: clip_config is not a backbone of these weights ({error}).") from None


def _weights(vision: dict[str, Any], text: dict[str, Any]) -> float:
    """About how many weights the towers have; by formula, since building them would take the memory."""
    width, layers = float(text.get("width", 512)), float(text.get("layers", 12))
    count = float(text.get("vocab_size", 49408)) * width + float(text.get("context_length", 77)) * width
    count += layers * (4 + 2 * float(text.get("mlp_ratio", 4))) * width**2
    if vision.get("timm_model_name"):
        return count
    width, layers = float(vision.get("width", 768)), vision.get("layers", 12)
    if isinstance(layers, list | tuple):  # a ResNet: the last of its stages is the largest
        return count + sum(map(float, layers)) * width**2 + float(layers[-1]) * 500 * width**2
    patch, side = vision.get("patch_size") or 16, vision.get("image_size", 224)
    grid = float(side[0] if isinstance(side, list | tuple) else side) / float(
        patch[0] if isinstance(patch, list | tuple) else patch
    )
    return float(count + layers * (4 + 2 * float(vision.get("mlp_ratio", 4))) * width**2 + grid**2 * width)


def _require_bounded(content: dict[str, Any], name: str) -> None:
    """Raise UserError unless all is tensors and plain values, of a bounded number, depth and size."""
    count = 0
    todo: list[tuple[Any, int]] = [(content, 0)]
    while todo:
        value, depth = todo.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{name}: holds more values, or deeper, than any checkpoint of sdpl.")
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise UserError(f"{name}: has a key that is neither text nor a number; sdpl-train did not write it.")
            todo += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            todo += [(item, depth + 1) for item in value]
        elif not _is_possible(value):
            kind = type(value).__name__
            raise UserError(f"{name}: has a value of type {kind} that sdpl-train does not write; it is not loaded.")


def _is_possible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in DTYPES
        return is_plain and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return abs(value) < 1 << 64
    return value is None or isinstance(value, float)


def _require_hashes(content: dict[str, Any], name: str) -> None:
    written = content.get(HASHES)
    found = hashes(content)
    if not isinstance(written, dict) or written.keys() != found.keys():
        raise UserError(f"{name}: its hashes are not those of its tensors; it was not written whole by sdpl-train.")
    for place, digest in found.items():
        if digest != written[place]:
            raise UserError(f"{name}: {place} is damaged (hash differs); copy it again or train again.")


def _check_categories(content: dict[str, Any], name: str) -> list[str]:
    categories = content["categories"]
    if not isinstance(categories, list) or not all(isinstance(category, str) for category in categories):
        raise UserError(f"{name}: categories: expected a list of names.")
    if not 0 < len(categories) <= MAX_CATEGORIES:
        raise UserError(f"{name}: has {len(categories):,} categories; 1 to {MAX_CATEGORIES:,} are possible.")
    require_distinct(categories, name)
    thresholds = content["thresholds"]
    is_numbers = isinstance(thresholds, list) and all(isinstance(value, float) for value in thresholds)
    if not is_numbers or len(thresholds) != len(categories) or any(map(math.isnan, thresholds)):
        raise UserError(f"{name}: thresholds: expected a number for each of the {len(categories)} categories.")
    return categories


def _check_tensors(content: dict[str, Any], config: Config, categories: list[str], name: str) -> None:
    state, words, images = content["state"], content["words"], content["proof_images"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{name}: state: expected the model's tensors by name.")
    if not isinstance(words, torch.Tensor) or words.dim() != 2 or len(words) != len(categories):
        raise UserError(f"{name}: words: expected a word vector for each of the {len(categories)} categories.")
    side = config.model.image_size
    is_images = isinstance(images, torch.Tensor) and images.dtype == torch.uint8 and images.dim() == 4
    if not is_images or tuple(images.shape[1:]) != (side, side, 3) or len(images) > MAX_PROOF_IMAGES:
        raise UserError(f"{name}: proof_images: expected images uint8 [N,{side},{side},3].")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no dict and no list, with its place; of lists also the length."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}/{shortened(str(key), 200)}" if place else str(key))
    elif isinstance(value, list | tuple):
        yield f"{place}/length", len(value)
        for i, item in enumerate(value):
            yield from _leaves(item, f"{place}/{i}")
    else:
        yield place, value
