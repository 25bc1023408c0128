"""The demo's tiny CLIP: a real open_clip model, small enough to ship.

A modified ResNet (stride 32, 512 channels, attention pooling) and a causal text transformer, pretrained
by `sdpl.demo.pretrain` on captioned digit scenes.
"""

from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from sdpl.files import replace_file

NAME = "sdpl-tiny-RN"
STRIDE = 32  # pixels of the image for each cell of the map
CONFIG = Path(__file__).with_name(f"{NAME}.json")
WEIGHTS = Path(__file__).with_name("tiny_clip.npz")


def create(image_size: int) -> open_clip.CLIP:
    """The model with freshly drawn weights."""
    open_clip.add_model_config(CONFIG)
    return open_clip.create_model(NAME, force_image_size=image_size)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B,3,S,S] to the float32 that the tower expects (CLIP's mean and standard deviation)."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def save(model: torch.nn.Module, seen: torch.Tensor, path: Path) -> None:
    """Write the weights, compressed float16. The embeddings of tokens that no caption used (`seen` is False)
    are still random: they become zeros, which compress to nothing."""
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state["token_embedding.weight"][~seen] = 0
    np.savez_compressed(path, **{k: v.half().numpy() if v.is_floating_point() else v.numpy() for k, v in state.items()})


def unpack_weights(path: Path) -> Path:
    """Write the shipped weights as a safetensors file that open_clip, and so `model.weights`, can read."""
    with np.load(WEIGHTS, allow_pickle=False) as archive, replace_file(path) as temporary:
        save_file({name: torch.from_numpy(archive[name]) for name in archive.files}, temporary)
    return path
