"""The whole model on a CPU, batch 1: the exported targets against the research formulation in PyTorch eager.

    python benchmarks/cpu_model.py [--out docs/benchmarks/cpu_model.json]

CLIP RN101 at 448 pixels, C=80, random weights (speed does not depend on them; accuracy in int8 does, so that is
measured by `make demo`). All sides take one uint8 image in memory to scores, in processes that take turns. Also
measured: `sdpl-export` for a CPU and for an RTX 3090, with the proof, in a process of its own: time and peak memory.
"""

import json
import os
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

from sdpl.demo.scenes import write_coco
from sdpl.runtime import Recognizer
from sdpl.runtime.bench import measure, summarize
from sdpl.runtime.environment import environment
from sdpl.train.checkpoint import load_checkpoint, restore_model, save_checkpoint
from sdpl.train.config import check_config
from sdpl.train.model import new_model

RESEARCH = "research"
TARGETS = ("cpu:fp32", "cpu:int8")
EXPORTS = {"export": ("cpu:fp32", "rtx:sm86:fp16"), "export_int8": TARGETS}  # the last one is then measured
ROUNDS = 3
WORDS = Path(__file__).parent.parent / "sdpl" / "train" / "model" / "glove" / "coco80.npz"


def coco_model(backbone: str = "RN101", image_size: int = 448, map_pool: int = 2) -> tuple:
    categories = tuple(np.load(WORDS)["names"].tolist())
    settings = {"backbone": backbone, "image_size": image_size, "map_pool": map_pool, "weights": None}
    settings["word_vectors"] = "glove-coco80"
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
    if side == RESEARCH:
        scorer = research_scorer(folder / "model.ckpt")
    else:
        scorer = Recognizer.open(folder / "model.sdpl", side).scores
    image = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    return asdict(summarize("model", 1, *measure(lambda: scorer(image), seconds)))


def timed_export(checkpoint: Path, targets: tuple[str, ...]) -> dict[str, float]:
    """Seconds and peak memory of one `sdpl-export`; int8 is calibrated on generated scenes."""
    words = [word for target in targets for word in ("--target", target)]
    if any("int8" in target for target in targets):
        scenes = checkpoint.parent / "scenes"
        write_coco(scenes, "train", 16, seed=0)
        words += ["--calibrate", scenes / "train", "--max-score-diff", "1"]  # random weights: only the time counts
    before = time.perf_counter()
    command = [sys.executable, "-m", "sdpl", "export", checkpoint, *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, process.returncode, usage = os.wait4(process.pid, 0)  # this child's own peak
    if process.returncode != 0:
        raise click.ClickException(f"sdpl-export failed with status {process.returncode}")
    return {"seconds": time.perf_counter() - before, "peak_mb": usage.ru_maxrss / 1024}


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
    rounds, exports = [], {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.ckpt"
        save_checkpoint(checkpoint, config, model, proof, {})
        del model
        for name, targets in EXPORTS.items():
            exports[name] = timed_export(checkpoint, targets)
            print(f"sdpl-export for {', '.join(targets)}: {exports[name]}", flush=True)
        for _ in range(ROUNDS):
            for name in (*TARGETS, RESEARCH):
                command = [sys.executable, __file__, "--seconds", str(seconds), "--side", name, folder]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                rounds.append({**json.loads(result.stdout.splitlines()[-1]), "side": name})
                print(f"{name}: p50 {rounds[-1]['p50_ms']:.0f} ms, spread {rounds[-1]['spread']:.1%}", flush=True)
    p50 = {name: statistics.median(r["p50_ms"] for r in rounds if r["side"] == name) for name in (*TARGETS, RESEARCH)}
    report = {
        "environment": {**environment(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "p50_ms": p50,
        "speed_up": {name: p50[RESEARCH] / p50[name] for name in TARGETS},
        **exports,
        "rounds": rounds,
    }
    print("times faster:", {name: round(value, 2) for name, value in report["speed_up"].items()})
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
