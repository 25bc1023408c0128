"""PyTorch's own ways to run a checkpoint, to measure a bundle against."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdpl.train.checkpoint import load_checkpoint, restore_model


def pytorch_scorers(checkpoint: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Scorers by name: eager, eager in channels_last, and torch.compile; on the GPU in float16 where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def scorer(prepare: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[np.ndarray], np.ndarray]:
        _, model = restore_model(load_checkpoint(checkpoint), str(checkpoint))
        network = prepare(model.to(device).eval())
        with torch.no_grad():
            t = model.text_features()  # [C,E], a constant after training

        @torch.inference_mode()
        def score(images: np.ndarray) -> np.ndarray:
            with torch.autocast(device, torch.float16, enabled=device == "cuda"):
                logits = network(torch.from_numpy(images).to(device), t)  # [B,C]
            return model.probabilities(logits).float().cpu().numpy()

        return score

    return {
        "pytorch eager": scorer(lambda model: model),
        "pytorch channels_last": scorer(lambda model: model.to(memory_format=torch.channels_last)),
        "pytorch compiled": scorer(torch.compile),
    }
