"""The whole model on a GPU: a bundle's targets against PyTorch in one run, and a long soak.

    python benchmarks/gpu_model.py --folder WORK [--out docs/benchmarks/gpu_model-NAME.json]

CLIP RN101 at 448 pixels, C=80, random weights. Exports every target that this GPU can run, verifies it here, measures
batch 1, 8 and 32 with `sdpl-bench --against` (PyTorch in float16: eager, channels_last, compiled), takes the head's
share of the device time, and runs 10,000 batches while watching the GPU's free memory.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import torch
from cpu_model import coco_model
from two_stage import head_us

from sdpl.kernels.gpu import gpu_obstacle, require_gpu
from sdpl.runtime import Recognizer
from sdpl.runtime.availability import backend_obstacle
from sdpl.runtime.bench import measure
from sdpl.runtime.device import Cuda
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


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="For the checkpoint and the bundle.")
@click.option("--out", type=click.Path(path_type=Path))
def main(folder: Path, out: Path | None) -> None:
    if gpu_obstacle() is not None:
        raise click.ClickException(f"this benchmark needs a GPU: {gpu_obstacle()}")
    folder.mkdir(parents=True, exist_ok=True)
    config, model = coco_model()
    images = np.random.default_rng(0).integers(0, 256, (8, 448, 448, 3), dtype=np.uint8)
    checkpoint, bundle = folder / "model.ckpt", folder / "model.sdpl"
    save_checkpoint(checkpoint, config, model, torch.from_numpy(images), {})
    targets = targets_here()
    if not targets:
        raise click.ClickException(
            "no engine runs here; one of them: " + "; ".join(b.install for b in BACKENDS.values() if b.needs_gpu)
        )
    words = [word for target in ("cpu:fp32", *targets) for word in ("--target", target)]
    sdpl("export", checkpoint, "--out", bundle, *words, "--batch", "1:8:32")
    sdpl("verify", bundle)
    report = {}
    for target in targets:
        path = folder / f"{target.replace(':', '-')}.json"
        batches = ",".join(map(str, BATCHES))
        sdpl("bench", bundle, "--backend", target, "--batch", batches, "--against", checkpoint, "--json", path)
        report[target] = json.loads(path.read_text())
        with Recognizer.open(bundle, target) as recognizer:
            report[target]["head_share"] = {b: head_share(recognizer, images[np.arange(b) % 8]) for b in BATCHES}
            report[target]["soak"] = soak(recognizer, images)
        print(json.dumps({key: report[target][key] for key in ("head_share", "soak")}), flush=True)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
