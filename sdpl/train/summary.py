"""What a run says before its first step: data, model, device, memory; and labels that cannot be learned."""

from collections.abc import Iterator

import torch

from sdpl.data.images import LabelledImages
from sdpl.errors import listed
from sdpl.text import counted
from sdpl.train.config import Config
from sdpl.train.model import PartialLabelModel


def summary(
    config: Config,
    model: PartialLabelModel,
    train: LabelledImages,
    val: LabelledImages,
    device: torch.device,
    processes: int = 1,
) -> Iterator[str]:
    """The lines, one fact a line. train: with the labels that `data.known_proportion` left."""
    known, positive = int((train.labels != 0).sum()), int((train.labels > 0).sum())
    yield (
        f"data: {len(train):,} training and {len(val):,} validation images, {counted(len(train.categories))}; "
        f"training labels: {known:,} known ({known / train.labels.size:.1%}), {positive:,} of them positive "
        f"({positive / len(train):.1f} an image)"
    )
    height, width = model.map_size
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    yield (
        f"model: {config.model.backbone} at {config.model.image_size} px, map {height}x{width}x{model.channels}; "
        f"parameters: {trained:,} trained, {frozen:,} frozen"
    )
    steps = _steps(config, len(train), processes)
    yield f"run: {_device(device)}, {config.train.precision} tower; {steps}; {_cache(config)}"
    needed = _memory_mb(config, model, trained, processes)
    yield f"memory: at least {needed:,.0f} MB for weights, optimiser and one batch's maps"
    yield from label_warnings(train)


def label_warnings(train: LabelledImages) -> Iterator[str]:
    """Categories of which no positive, or nothing negative, is left to learn from."""
    for sign, word in ((1, "positive"), (-1, "negative")):
        counts = (sign * train.labels > 0).sum(axis=0)  # [C]
        lost = [name for name, count in zip(train.categories, counts, strict=True) if not count]
        if lost:
            missing = f"no known {word} training label for {counted(len(lost))} ({listed(lost)})"
            yield f"warning: {missing}: they cannot be learned"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _steps(config: Config, images: int, processes: int) -> str:
    size, epochs = config.train.batch_size, config.train.epochs
    shared = f" over {processes} processes" if processes > 1 else ""
    steps = counted(-(-images // size), "step", "steps")
    return f"{counted(epochs, 'epoch', 'epochs')} of {steps} with {min(size, images)} images{shared}"


def _cache(config: Config) -> str:
    return (
        f"maps cached in {config.data.cache}"
        if config.data.cache
        else "no cache: the tower sees every image every epoch"
    )


def _memory_mb(config: Config, model: PartialLabelModel, trained: int, processes: int) -> float:
    """Weights, gradients, momentum and moving average, and the images and maps of one part of a batch; float32."""
    weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    copies = 2 + bool(config.train.ema_decay)
    part = -(-config.train.batch_size // (processes * config.train.accumulate))
    locations, channels = model.map_shape
    batch = part * (3 * config.model.image_size**2 + 4 * locations * channels)
    return (weights + 4 * copies * trained + batch) / 1e6
