"""Pretrains the tiny CLIP of the demo, contrastively, on captioned digit scenes. Deterministic on one machine.

Run once by the maintainers; its result, `tiny_clip.npz`, ships with the package:

    python -m sdpl.demo.pretrain --out sdpl/demo/tiny_clip.npz

Only the "train" digit instances are used, so the demo's test scenes show digits that this model never saw.
The scenes grow from one digit on 64 pixels to four on 192 (`STAGES`); from scratch on full scenes the first
thousands of steps learn little more than counting.
"""

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import open_clip
import torch
from rich.progress import Progress
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sdpl.demo import tiny_clip
from sdpl.demo.scenes import CATEGORIES, compose, digit_instances

TEMPLATES = ("a photo of {}.", "a picture of {}.", "handwritten {}.", "a scene with {}.", "{}.")


@dataclass(frozen=True)
class Stage:
    side: int  # pixels
    most: int  # digits in a scene
    batch: int
    steps: int
    peak_lr: float


STAGES = (Stage(64, 1, 128, 700, 1e-3), Stage(128, 2, 96, 500, 1e-3), Stage(192, 4, 96, 1000, 1e-3))


def caption(rng: np.random.RandomState, digits: tuple[int, ...]) -> str:
    """A sentence that names the digits of a scene in random order, each once."""
    names = [CATEGORIES[d] for d in rng.permutation(sorted(set(digits)))]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return TEMPLATES[rng.randint(len(TEMPLATES))].format(listed)


class CaptionedScenes(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Item i: image uint8 [3,S,S], tokens int [40], set of digits as bits (int). Item i never changes."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.pictures, self.classes = digit_instances("train")
        self.tokenize = open_clip.get_tokenizer(tiny_clip.NAME)

    def __len__(self) -> int:
        return self.stage.steps * self.stage.batch

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        rng = np.random.RandomState(1_000_000 * self.stage.most + index)
        scene = compose(rng, self.pictures, self.classes, self.stage.side, self.stage.most)
        image = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1)
        tokens = self.tokenize(caption(rng, scene.digits))[0]
        return image, tokens, sum(1 << d for d in set(scene.digits))


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, digit_sets: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross entropy over a batch. Features [B,E], digit_sets [B].

    Scenes with the same set of digits are positives of each other; plain CLIP may ignore that because its
    captions rarely repeat.
    """
    logits = scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T  # [B,B]
    same = (digit_sets[:, None] == digit_sets[None, :]).float()  # [B,B]
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def grow(model: open_clip.CLIP | None, side: int) -> open_clip.CLIP:
    """The model for another image side: all weights kept, the pooling's position embeddings interpolated."""
    larger = tiny_clip.create(side)
    if model is None:
        return larger
    state = model.state_dict()
    key = "visual.attnpool.positional_embedding"
    mean, grid = state[key][:1], state[key][1:]  # [1,D], [n*n,D]
    old, new = int(len(grid) ** 0.5), side // tiny_clip.STRIDE
    grid = grid.T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T  # [new*new,D]
    larger.load_state_dict({**state, key: torch.cat([mean, grid])})
    return larger


def pretrain_stage(model: open_clip.CLIP, stage: Stage, seen: torch.Tensor, progress: Progress) -> None:
    """AdamW with a one-cycle schedule, bfloat16 in the image tower. Marks the tokens it used in `seen`."""
    model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.peak_lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.peak_lr, total_steps=stage.steps, pct_start=0.1)
    task = progress.add_task("", total=stage.steps)
    for images, tokens, digit_sets in DataLoader(CaptionedScenes(stage), batch_size=stage.batch, num_workers=1):
        seen[tokens.unique()] = True
        images = tiny_clip.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(images)
        text_features = model.encode_text(tokens)
        scale = model.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(image_features.float(), text_features, scale, digit_sets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        progress.update(task, advance=1, description=f"{stage.side} px, {stage.most} digits, loss {loss.item():.3f}")
        if schedule.last_epoch % 50 == 0:
            progress.console.print(f"{stage.side} px  step {schedule.last_epoch:5d}  loss {loss.item():.3f}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = None
    with Progress() as progress:
        for stage in STAGES:
            model = grow(model, stage.side)
            seen = torch.zeros(model.token_embedding.num_embeddings, dtype=torch.bool)
            pretrain_stage(model, stage, seen, progress)
            tiny_clip.save(model, seen, out)


if __name__ == "__main__":
    main()
