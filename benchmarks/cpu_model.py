"""The whole model on a CPU, batch 1: the exported bundle against the research formulation in PyTorch eager.

    python benchmarks/cpu_model.py [--out docs/benchmarks/cpu_model.json]

CLIP RN101 at 448 pixels, C=80, float32, random weights (speed does not depend on them). Both sides take one
uint8 image in memory to scores. Their calls alternate, so that both see the same machine. Also timed: the
export itself, with its proof, as `sdpl-export` in a process of its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from research import ResearchHead

from sdpl.runtime import Recognizer
from sdpl.runtime.bench import environment
from sdpl.train.checkpoint import save_checkpoint
from sdpl.train.config import check_config
from sdpl.train.model import PartialLabelModel, new_model

WORDS = Path(__file__).parent.parent / "sdpl" / "train" / "glove" / "coco80.npz"


def coco_model() -> tuple:
    categories = tuple(np.load(WORDS)["names"].tolist())
    settings = {"backbone": "RN101", "weights": None, "word_vectors": "glove-coco80"}
    config = check_config({"data": {"train": {"annotations": "none"}}, "model": settings})
    torch.manual_seed(0)
    return config, new_model(config.model, categories).eval()


def research_model(model: PartialLabelModel):
    encoder = model.encoder
    head = ResearchHead(len(model.categories)).eval()

    def call(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return head(encoder.locations(torch.from_numpy(images))).sigmoid().numpy()

    return call


def alternate(calls: dict, images: np.ndarray, runs: int) -> dict[str, list[float]]:
    """Times in ms of each call, one after the other in every round; the first two rounds are warm-up."""
    times = {name: [] for name in calls}
    for round_number in range(runs + 2):
        for name, call in calls.items():
            before = time.perf_counter()
            call(images)
            if round_number >= 2:
                times[name].append(1000 * (time.perf_counter() - before))
    return times


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--runs", default=15, show_default=True)
def main(out: Path | None, runs: int) -> None:
    config, model = coco_model()
    rng = np.random.default_rng(0)
    proof = torch.from_numpy(rng.integers(0, 256, (8, 448, 448, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "model.ckpt", Path(folder) / "model.sdpl"
        save_checkpoint(checkpoint, config, model, proof, {})
        before = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sdpl", "export", checkpoint], check=True)
        export_s = time.perf_counter() - before
        with Recognizer.open(bundle) as recognizer:
            calls = {
                "exported, ONNX Runtime": recognizer.scores,
                "research, PyTorch eager": research_model(model),
            }
            times = alternate(calls, proof[:1].numpy(), runs)
    p50 = {name: statistics.median(values) for name, values in times.items()}
    names = list(p50)
    report = {
        "environment": {**environment(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "p50_ms": p50,
        "times_ms": times,
        "speed-up": p50[names[1]] / p50[names[0]],
        "export_s": export_s,
    }
    print(json.dumps({k: v for k, v in report.items() if k != "times_ms"}, indent=2))
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
