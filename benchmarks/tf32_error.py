"""How far TF32 moves scores, emulated on a CPU: why there is no target `tf32` (docs/decisions/0061).

    python benchmarks/tf32_error.py [--checkpoint demo-run/run/model.ckpt] [--images FOLDER] [--out FILE]

With TF32 the two factors of a product are rounded to 11 bits (10 are stored), and sums are float32. Here every
convolution and matrix product of the model in PyTorch gets its factors rounded so, the head's too, and scores are
compared with float32's. Also with 8 bits, which is what bfloat16 factors would do. Of a checkpoint on a folder's
images, or of CLIP backbones with random weights, C=80, on 8 of the demo's scenes.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cpu_model import coco_model
from results import Results
from torch.utils._python_dispatch import TorchDispatchMode

from sdpl.demo.scenes import write_coco
from sdpl.preprocess import find_images, preprocess
from sdpl.runtime.environment import environment
from sdpl.train.checkpoint import load_checkpoint, restore_model

PRODUCTS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
}
COUNT, BATCH = 8, 50  # images without a checkpoint; in one call
MODELS = (("RN101", 448, 2), ("RN50", 224, 1), ("ViT-B-16", 224, 1))


def rounded(x: object, bits: int) -> object:
    """float32 values to a mantissa of so many bits, to nearest, ties to even."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    drop = 24 - bits
    raw = x.contiguous().view(torch.int32)
    raw = raw + (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)
    return (raw & ~((1 << drop) - 1)).view(torch.float32)


class Rounding(TorchDispatchMode):
    """Rounds the two factors of every product; counts the products."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.products = bits, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in PRODUCTS:
            self.products += 1
            first = 1 if function in (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default) else 0
            arguments = list(arguments)
            arguments[first : first + 2] = [rounded(x, self.bits) for x in arguments[first : first + 2]]
        return function(*arguments, **(options or {}))


def compare(model: Any, size: int, paths: list[Path]) -> dict[str, Any]:
    """Differences of scores, of all images and categories."""
    scorer = model.scorer()

    def scores() -> np.ndarray:
        parts = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
        return np.concatenate([scorer(np.stack([preprocess(path, size) for path in part])) for part in parts])

    exact = scores()
    row: dict[str, Any] = {"images": len(paths), "scores_spread": float(exact.std(axis=0).mean())}
    for bits in (11, 8):
        with Rounding(bits) as mode:
            found = scores()
        off, best = np.abs(found - exact), [np.argsort(-each, axis=1)[:, :5] for each in (exact, found)]
        row[f"{bits} bits"] = {
            "largest": float(off.max()),
            "rms": float((off**2).mean() ** 0.5),
            "same_top_5": float((best[0] == best[1]).all(axis=1).mean()),
        }
        row["products"] = mode.products
    return row


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="A folder.")
@click.option("--out", type=click.Path(path_type=Path))
def main(checkpoint: Path | None, images: Path | None, out: Path | None) -> None:
    results = Results(out, seconds=600, **environment(), torch=torch.__version__)
    with tempfile.TemporaryDirectory() as made:
        if images is None:
            write_coco(Path(made), "test", COUNT, seed=2)
        paths = find_images([images or Path(made) / "test"])
        if checkpoint is not None:
            config, model = restore_model(load_checkpoint(checkpoint))
            results.add(f"{config.model.backbone}, trained", compare(model, config.model.image_size, paths))
            return
        for backbone, size, map_pool in MODELS:
            _, model = coco_model(backbone, size, map_pool)
            results.add(f"{backbone}, {size} px, random weights", compare(model, size, paths[:COUNT]))


if __name__ == "__main__":
    main()
