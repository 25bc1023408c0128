"""What frozen encoders save in training: each saving against the same work without it. CLIP RN101 at 448 pixels, C=80.

    python benchmarks/training.py [--out docs/benchmarks/training.json]

1. An epoch (32 photos, batch 16) with maps from the feature cache, and with maps from the tower, for learned and for
   frozen prompts. The cache was filled before; validation and checkpoints are left out on both sides.
2. Filling the cache from JPEG files, and the tower alone on the same images in memory.
3. The text tower over the longest prompt's tokens, and over the whole context: forward and backward.
4. Forward and backward of the head through the recomputing operator, and through plain autograd on the research
   formulation: time and peak memory, each side in a process of its own.

float32, random weights (speed does not depend on them). The sides of 1 to 3 take turns; shown are medians.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from cpu_head import peak_growth_mb
from cpu_model import WORDS
from PIL import Image
from research import D, E, K, L, ResearchHead, W

from sdpl.data.images import LabelledImages
from sdpl.preprocess import preprocess
from sdpl.runtime.bench import environment
from sdpl.train.config import Config, check_config
from sdpl.train.distributed import Processes
from sdpl.train.features.sources import FILL_BATCH, FeatureMaps, FeatureSource, TowerFeatures
from sdpl.train.model import PartialLabelModel, new_model
from sdpl.train.model.decoupling import Decoupling
from sdpl.train.model.prompts import PromptLearner
from sdpl.train.step import Learner

PHOTOS, BATCH = 32, 16
CPU = torch.device("cpu")


def photos(folder: Path, categories: tuple[str, ...]) -> LabelledImages:
    """JPEG files of 640x480, smooth noise: about as large as photos, and as slow to decode."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(PHOTOS):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        paths.append(folder / f"{i:03d}.jpg")
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    labels = rng.choice([-1, 0, 1], (PHOTOS, len(categories)), p=[0.27, 0.7, 0.03]).astype(np.int8)
    return LabelledImages(tuple(paths), labels, categories)


def configuration(prompts: str, cache: Path | None) -> Config:
    settings = {"backbone": "RN101", "weights": None, "word_vectors": "glove-coco80", "prompts": prompts}
    data = {"train": {"annotations": "none"}, "cache": cache and str(cache)}
    return check_config({"data": data, "model": settings, "train": {"batch_size": BATCH, "device": "cpu"}})


def take_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            before = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def epoch(learner: Learner, maps: FeatureMaps, data: LabelledImages) -> None:
    groups = [np.arange(start, start + BATCH) for start in range(0, len(data), BATCH)]
    labels = torch.from_numpy(data.labels)
    for part in maps.batches(groups, 0):
        learner.step([part], labels, BATCH, lr=1e-4)


def epochs(data: LabelledImages, folder: Path, rounds: int) -> dict:
    rows = {}
    for prompts in ("category-specific", "manual"):
        config = configuration(prompts, folder / "cache")
        torch.manual_seed(0)
        model = new_model(config.model, data.categories)
        source = FeatureSource(model, config, CPU)
        cached = source.plain(data)
        learner = Learner(model, config, Processes())
        tower = TowerFeatures(source.tower, data, config, source.unreadable)
        sides = {"tower_s": partial(epoch, learner, tower, data), "cache_s": partial(epoch, learner, cached, data)}
        epoch(learner, cached, data)
        seconds = take_turns(sides, rounds)
        rows[f"{prompts} prompts"] = {**seconds, "times_faster": seconds["tower_s"] / seconds["cache_s"]}
    return rows


def filling(data: LabelledImages, folder: Path, rounds: int) -> dict:
    model = new_model(configuration("manual", None).model, data.categories)
    plain = configuration("manual", None)
    tower = FeatureSource(model, plain, CPU).tower
    images = np.stack([preprocess(path, plain.model.image_size) for path in data.images])  # [N,S,S,3]
    number = iter(range(1000))

    def fill() -> None:
        config = replace(plain, data=replace(plain.data, cache=str(folder / f"cache{next(number)}")))
        FeatureSource(model, config, CPU).plain(data)

    def alone() -> None:
        for start in range(0, PHOTOS, FILL_BATCH):
            tower(images[start : start + FILL_BATCH])

    alone()
    seconds = take_turns({"tower_s": alone, "filling_s": fill}, rounds)
    return {**seconds, "slower": seconds["filling_s"] / seconds["tower_s"] - 1}


def text_tower(model: PartialLabelModel, rounds: int) -> dict:
    """The learned prompts as they are cut, and the same padded to the whole context."""
    cut: PromptLearner = model.prompts
    whole = PromptLearner(model.encoder, model.categories, model.config)
    whole.load_state_dict(cut.state_dict())
    context = model.encoder.text.positional_embedding.shape[0]
    whole.tokens = torch.nn.functional.pad(cut.tokens, (0, context - cut.tokens.shape[1]))  # [C,77]

    def call(prompts: PromptLearner):
        def forward_and_backward() -> None:
            prompts.context.grad = None
            prompts(model.encoder).sum().backward()

        return forward_and_backward

    with torch.no_grad():
        difference = (cut(model.encoder) - whole(model.encoder)).abs().max().item()
    seconds = take_turns({"cut_s": call(cut), "whole_s": call(whole)}, rounds)
    tokens = {"tokens": cut.tokens.shape[1], "context": context}
    return {**tokens, **seconds, "share": seconds["cut_s"] / seconds["whole_s"], "largest_difference": difference}


def head_side(side: str, rounds: int) -> dict:
    """Runs in its own process, so that nothing else has raised the peak before."""
    torch.manual_seed(0)
    f = torch.randn(BATCH, L, D)
    research, words, t = ResearchHead(80), torch.randn(80, W), torch.randn(80, E)
    ours = Decoupling(D, 80, W, K, E, "semantic", "projected")

    def call() -> None:
        logits = research(f) if side == "research" else ours(f, words, t)[0]  # [B,C]
        logits.sum().backward()

    peak_mb = peak_growth_mb(call)
    return {"peak_mb": peak_mb, "s": take_turns({"s": call}, rounds)["s"]}


def heads(rounds: int) -> dict:
    rows = {}
    for side in ("operator", "research"):
        command = [sys.executable, __file__, "--rounds", str(rounds), "--head", side]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[side] = json.loads(result.stdout.splitlines()[-1])
    return {**rows, "memory_share": rows["operator"]["peak_mb"] / rows["research"]["peak_mb"]}


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--rounds", default=3, show_default=True)
@click.option("--head", hidden=True)
def main(out: Path | None, rounds: int, head: str | None) -> None:
    if head:
        print(json.dumps(head_side(head, rounds)))
        return
    categories = tuple(np.load(WORDS)["names"].tolist())
    parts: dict[str, dict] = {"head": heads(rounds)}
    print("head", parts["head"], flush=True)
    model = new_model(configuration("category-specific", None).model, categories)
    parts["text_tower"] = text_tower(model, rounds)
    print("text tower", parts["text_tower"], flush=True)
    with tempfile.TemporaryDirectory() as name:
        data = photos(Path(name), categories)
        parts["filling_the_cache"] = filling(data, Path(name), rounds)
        print("filling the cache", parts["filling_the_cache"], flush=True)
        parts["epoch"] = epochs(data, Path(name), rounds)
        print("epoch", parts["epoch"], flush=True)
    if out is not None:
        sizes = {"photos": PHOTOS, "batch": BATCH, "rounds": rounds, "threads": torch.get_num_threads()}
        report = {"environment": {**environment(), "torch": torch.__version__}, **sizes, **parts}
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
