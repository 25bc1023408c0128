"""The whole model on a CPU, batch 1: the exported bundle against the research formulation in PyTorch eager.

    python benchmarks/cpu_model.py [--out docs/benchmarks/cpu_model.json]

CLIP RN101 at 448 pixels, C=80, float32, random weights (speed does not depend on them). Both sides take one
uint8 image in memory to scores, in processes that take turns. Also timed: the export itself, with its proof, as
`sdpl-export` in a process of its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from research import ResearchHead

from sdpl.runtime import Recognizer
from sdpl.runtime.bench import measure, summarise
from sdpl.runtime.environment import environment
from sdpl.train.checkpoint import load_checkpoint, restore_model, save_checkpoint
from sdpl.train.config import check_config
from sdpl.train.model import new_model

EXPORTED, RESEARCH = "exported", "research"
ROUNDS = 3
WORDS = Path(__file__).parent.parent / "sdpl" / "train" / "glove" / "coco80.npz"


def coco_model() -> tuple:
    categories = tuple(np.load(WORDS)["names"].tolist())
    settings = {"backbone": "RN101", "weights": None, "word_vectors": "glove-coco80"}
    config = check_config({"data": {"train": {"annotations": "none"}}, "model": settings})
    torch.manual_seed(0)
    return config, new_model(config.model, categories).eval()


def research_scorer(checkpoint: Path):
    """The trunk and the research formulation of the head, in PyTorch eager."""
    _, model = restore_model(load_checkpoint(checkpoint))
    head = ResearchHead(len(model.categories)).eval()

    def scores(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return head(model.encoder.locations(torch.from_numpy(images))).sigmoid().numpy()

    return scores


def one_side(side: str, folder: Path, seconds: float) -> dict:
    """Runs in its own process, so that one library's waiting threads do not slow the other down."""
    scorer = (
        Recognizer.open(folder / "model.sdpl").scores if side == EXPORTED else research_scorer(folder / "model.ckpt")
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    return asdict(summarise("model", 1, *measure(lambda: scorer(image), seconds)))


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--seconds", default=10.0, show_default=True, help="For each side and round.")
@click.option("--side", nargs=2, hidden=True)
def main(out: Path | None, seconds: float, side: tuple[str, str] | None) -> None:
    if side:
        print(json.dumps(one_side(side[0], Path(side[1]), seconds)))
        return
    config, model = coco_model()
    proof = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 448, 448, 3), dtype=np.uint8))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.ckpt"
        save_checkpoint(checkpoint, config, model, proof, {})
        before = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sdpl", "export", checkpoint], check=True)
        export_s = time.perf_counter() - before
        for _ in range(ROUNDS):
            for name in (EXPORTED, RESEARCH):
                command = [sys.executable, __file__, "--seconds", str(seconds), "--side", name, folder]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                rounds.append({"side": name, **json.loads(result.stdout.splitlines()[-1])})
                print(f"{name}: p50 {rounds[-1]['p50_ms']:.0f} ms, spread {rounds[-1]['spread']:.1%}", flush=True)
    p50 = {name: statistics.median(r["p50_ms"] for r in rounds if r["side"] == name) for name in (EXPORTED, RESEARCH)}
    report = {
        "environment": {**environment(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "p50_ms": p50,
        "speed_up": p50[RESEARCH] / p50[EXPORTED],
        "export_s": export_s,
        "rounds": rounds,
    }
    print(f"{report['speed_up']:.2f} times faster; sdpl-export took {export_s:.0f} s")
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
