"""PyTorch's own ways to run a checkpoint, to measure a bundle against."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.model import PartialLabelModel


def pytorch_scorers(checkpoint: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Scorers by name: eager, eager in channels_last, and torch.compile; on the GPU in float16 where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def scorer(prepare: Callable[[PartialLabelModel], object]) -> Callable[[np.ndarray], np.ndarray]:
        _, model = restore_model(load_checkpoint(checkpoint), str(checkpoint))
        model.to(device).eval()
        if device == "cuda":
            model.encoder.clip.visual.half()  # once, not by autocast in every call
        prepare(model)
        score = model.scorer()

        def in_half_on_a_gpu(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
                return score(images)

        return in_half_on_a_gpu

    def compile_encoder(model: PartialLabelModel) -> None:
        compiled = torch.compile(model.encoder.locations)  # nearly all of the time is spent there
        model.encoder.locations = compiled  # type: ignore[method-assign]  # of this one object

    return {
        "pytorch eager": scorer(lambda model: None),
        "pytorch channels_last": scorer(lambda model: model.to(memory_format=torch.channels_last)),
        "pytorch compiled": scorer(compile_encoder),
    }
