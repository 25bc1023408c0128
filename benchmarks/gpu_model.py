"""The whole model on a GPU: a bundle's targets against PyTorch in one run, and a long soak.

    python benchmarks/gpu_model.py --folder WORK [--out docs/benchmarks/gpu_model-NAME.json] [--seconds 440]

CLIP RN101 at 448 pixels, C=80, random weights. Exports every target that this GPU can run, verifies it here, measures
batch 1, 8 and 32 with `sdpl-bench --against` (PyTorch in float16: eager, channels_last, compiled), takes the head's
share of the device time, and runs 10,000 batches while watching the GPU's free memory. Results are written as they
come, and status 3 says that the time was not enough: call it again.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cpu_model import coco_model
from results import Results
from two_stage import head_us

from sdpl.kernels.gpu import gpu_obstacle, require_gpu
from sdpl.runtime import Recognizer
from sdpl.runtime.availability import backend_obstacle
from sdpl.runtime.bench import measure
from sdpl.runtime.device import Cuda
from sdpl.runtime.environment import environment
from sdpl.targets import BACKENDS
from sdpl.train.checkpoint import save_checkpoint

BATCHES = (1, 8, 32)
SOAK = 10_000


def sdpl(*words) -> None:
    subprocess.run([sys.executable, "-m", "sdpl", *map(str, words)], check=True)


def targets_here() -> list[str]:
    """Targets whose backend runs on this GPU."""
    gpu = require_gpu()
    by_backend = {
        "onnxruntime-cuda": "cuda:fp16",
        "tensorrt-rtx": f"rtx:sm{gpu.capability}:fp16",
        "tensorrt": "tensorrt:fp16",
    }
    return [target for backend, target in by_backend.items() if backend_obstacle(backend) is None]


def head_share(recognizer: Recognizer, images: np.ndarray) -> float:
    """The kernel's share of both stages' device time; its own is taken from many launches in one graph."""
    backend = recognizer.backend
    whole_ms = np.median(measure(backend.on_device(images), 3)[0])
    return head_us(backend, len(images)) / 1000 / float(whole_ms)


def soak(recognizer: Recognizer, images: np.ndarray) -> dict[str, int]:
    device = Cuda()
    for batch in range(1, len(images) + 1):  # every bucket there will be
        recognizer.scores(images[:batch])
    with device.current():
        before = device.free_bytes()
        for i in range(SOAK):
            recognizer.scores(images[: 1 + i % len(images)])
        return {"batches": SOAK, "free_bytes_before": before, "free_bytes_after": device.free_bytes()}


def export(folder: Path, targets: list[str]) -> tuple[Path, Path]:
    """The checkpoint and the verified bundle, if they are not there yet."""
    checkpoint, bundle = folder / "model.ckpt", folder / "model.sdpl"
    if not bundle.exists():
        config, model = coco_model()
        save_checkpoint(checkpoint, config, model, torch.from_numpy(some_images(8)), {})
        words = [word for target in ("cpu:fp32", *targets) for word in ("--target", target)]
        sdpl("export", checkpoint, "--out", bundle, *words, "--batch", "1:8:32")
        sdpl("verify", bundle)
    return checkpoint, bundle


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 448, 448, 3), dtype=np.uint8)[np.arange(count) % 8]


def bench(checkpoint: Path, bundle: Path, target: str, batch: int) -> dict:
    path = bundle.with_name("bench.json")
    sdpl("bench", bundle, "--backend", target, "--batch", batch, "--against", checkpoint, "--json", path)
    return json.loads(path.read_text())


def opened(bundle: Path, target: str, work: Callable[[Recognizer], Any]) -> Any:
    with Recognizer.open(bundle, target) as recognizer:
        return work(recognizer)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="For the checkpoint and the bundle.")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=440, show_default=True)
def main(folder: Path, out: Path | None, seconds: float) -> None:
    if gpu_obstacle() is not None:
        raise click.ClickException(f"this benchmark needs a GPU: {gpu_obstacle()}")
    folder.mkdir(parents=True, exist_ok=True)
    targets = targets_here()
    if not targets:
        raise click.ClickException(
            "no engine runs here; one of them: " + "; ".join(b.install for b in BACKENDS.values() if b.needs_gpu)
        )
    results = Results(out, seconds, **environment())
    checkpoint, bundle = export(folder, targets)
    for target in targets:
        for batch in BATCHES:
            results.attempt(f"{target}, batch {batch}", partial(bench, checkpoint, bundle, target, batch), 120)
            share = lambda recognizer, b=batch: {"head_share": head_share(recognizer, some_images(b))}  # noqa: E731
            results.attempt(f"{target}, head's share, batch {batch}", partial(opened, bundle, target, share))
        soaked = lambda recognizer: soak(recognizer, some_images(8))  # noqa: E731
        results.attempt(f"{target}, soak", partial(opened, bundle, target, soaked), 120)
    results.finish()


if __name__ == "__main__":
    main()
