"""Whole models on a CPU, every engine taking turns: sdpl's targets, plain ONNX Runtime and OpenVINO, and PyTorch.

    python benchmarks/cpu_engines.py WORK [--model rn101] [--threads 1] [--out docs/benchmarks/cpu_engines.json]

RN50 and ViT-B-16 at 224 pixels, RN101 at 448, C=80, random weights (speed does not depend on them; what int8 does to
accuracy `make demo` measures): uint8 images in memory to scores. All sides are open in one process and called in turns,
so that whatever else the machine does meets all of them. Kept are wall time and CPU time (of all threads) of a call: on
a machine that is not quiet only the latter says something, and that best with `--threads 1`, where no thread waits for
another. Bundles stay in WORK for the next call. The research formulation is part of every call, and kept is also how
many times less CPU and less time a side took than it did in the same turns: `--side` measures some of them in a shorter
call, whose rows replace those of the same sides in the JSON file.

"research" is the formulation of published code (`research.py`), all others are the folded model; "pytorch" sides run
the trained modules as they are, with the head's P and F_att kept apart; "inductor" is torch.compile with freezing.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from sdpl.cores import physical_cores
from sdpl.runtime.environment import environment
from sdpl.runtime.machine import packages
from sdpl.targets import BACKENDS

MODELS = {"rn50": ("RN50", 224, 1), "rn101": ("RN101", 448, 2), "vit": ("ViT-B-16", 224, 2)}  # size, map_pool
OURS = ("cpu:fp32", "openvino:fp32", "openvino:bf16", "cpu:int8", "openvino:int8")
PLAIN = ("onnxruntime", "openvino f32", "openvino bf16")
PYTORCH = ("research", "eager", "channels_last", "eager bf16", "channels_last bf16", "inductor")
RESEARCH = "pytorch research"
SIDES = (*OURS, *PLAIN, *(f"pytorch {name}" for name in PYTORCH))
Scorer = Callable[[np.ndarray], Any]


def prepare(name: str, work: Path) -> None:
    """A checkpoint and its bundle with every target, unless they are there."""
    import torch
    from cpu_model import coco_model

    from sdpl.demo.scenes import write_coco
    from sdpl.train.checkpoint import save_checkpoint

    backbone, size, map_pool = MODELS[name]
    if not (work / f"{name}.ckpt").exists():
        config, model = coco_model(backbone, size, map_pool)
        images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
        save_checkpoint(work / f"{name}.ckpt", config, model, torch.from_numpy(images), {})
    if not (work / f"{name}.sdpl").exists():
        write_coco(work / "scenes", "train", 16, seed=0)
        words = [word for target in OURS for word in ("--target", target)]
        words += ["--calibrate", work / "scenes" / "train", "--max-score-diff", "1"]  # random weights: only time counts
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "sdpl", "export", work / f"{name}.ckpt", *words])
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise click.ClickException(f"sdpl-export failed with status {status}")
        took = {"seconds": time.perf_counter() - started, "peak_mb": usage.ru_maxrss / 1024, "targets": OURS}
        (work / f"{name}.export.json").write_text(json.dumps(took))


def scorer_of(name: str, side: str, work: Path, threads: int) -> Scorer:
    """One side, ready to score."""
    bundle = work / f"{name}.sdpl"
    if side in OURS:
        from sdpl.runtime import Recognizer

        return Recognizer.open(bundle, side, threads).scores
    if side == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["scores"], {"image": images})
    if side.startswith("openvino "):
        openvino = BACKENDS["openvino"].load()
        config = {"INFERENCE_PRECISION_HINT": side.split()[1], "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(bundle / "model.onnx", "CPU", config)
        return lambda images: compiled(images)["scores"]
    return pytorch_scorer(work / f"{name}.ckpt", side.removeprefix("pytorch "))


def pytorch_scorer(checkpoint: Path, side: str) -> Scorer:
    import torch
    from research import ResearchHead

    from sdpl.train.checkpoint import load_checkpoint, restore_model

    _, model = restore_model(load_checkpoint(checkpoint))
    model.eval()
    if "channels_last" in side:
        model.to(memory_format=torch.channels_last)
    score: Scorer
    if side == "research":
        width = model.decoupling.image_projection.weight.shape[1]
        head = ResearchHead(len(model.categories), width, model.config.joint_dim, model.text_features().shape[1]).eval()

        def score(images: np.ndarray) -> Any:
            return head(model.encoder.locations(torch.from_numpy(images))).sigmoid().numpy()
    else:
        if side == "inductor":
            torch._inductor.config.freezing = True
            model.encoder.locations = torch.compile(model.encoder.locations)
        score = model.scorer()

    def scores(images: np.ndarray) -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in side):
            return score(images)

    return scores


def measure(
    name: str, sides: tuple[str, ...], batches: tuple[int, ...], rounds: int, threads: int, work: Path
) -> list[dict[str, Any]]:
    """Rows of one model: every side is opened, then all of them are called once a round."""
    size = MODELS[name][1]
    opened, rows = {}, {}
    for side in sides:
        before, started = resident_mb(), time.perf_counter()
        opened[side] = scorer_of(name, side, work, threads)
        opened[side](np.zeros((1, size, size, 3), np.uint8))
        rows[side] = {"model": name, "side": side, "threads": threads, "ready_s": time.perf_counter() - started}
        rows[side]["grown_mb"] = resident_mb() - before
    for batch in batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side in sides:
                time.sleep(0.02)  # threads of the side before stop waiting for work
                cpu, wall = time.process_time(), time.perf_counter()
                opened[side](images)
                if number > 0:  # the first round warms up
                    times[side].append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
        for side in sides:
            cpu_ms, wall_ms = (sorted(values) for values in zip(*times[side], strict=True))
            rows[side][f"batch {batch}"] = {
                "cpu_ms": statistics.median(cpu_ms),
                "wall_ms": statistics.median(wall_ms),
                "wall_min_ms": wall_ms[0],
                "cpu_spread": (np.percentile(cpu_ms, 75) - np.percentile(cpu_ms, 25)) / statistics.median(cpu_ms),
                "rounds": rounds,
            }
    return list(rows.values())


def resident_mb() -> float:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)))
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES))
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=physical_cores(), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Add the rows of these models to this file.")
def main(
    work: Path,
    models: tuple[str, ...],
    sides: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    threads: int,
    out: Path | None,
) -> None:
    import torch

    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {"rows": []}
    for name in models or MODELS:
        prepare(name, work)
        rows = measure(name, tuple({RESEARCH: 0, **dict.fromkeys(sides or SIDES)}), batches, rounds, threads, work)
        for row in rows:
            for batch in (f"batch {size}" for size in batches):
                row[batch]["times_less_cpu_than_research"] = rows[0][batch]["cpu_ms"] / row[batch]["cpu_ms"]
                row[batch]["times_faster_than_research"] = rows[0][batch]["wall_ms"] / row[batch]["wall_ms"]
            shown = (
                f"batch {b}: {row[f'batch {b}']['cpu_ms']:.1f} ms CPU, {row[f'batch {b}']['wall_ms']:.1f} ms"
                for b in batches
            )
            print(f"{name}, {row['side']}:", "; ".join(shown), flush=True)
        measured = {(row["model"], row["threads"], row["side"]) for row in rows}
        kept = [row for row in report["rows"] if (row["model"], row["threads"], row["side"]) not in measured]
        report["rows"] = kept + rows
        report["environment"] = {**environment(), **packages(), "torch": torch.__version__}
        export = work / f"{name}.export.json"
        if export.exists():
            report.setdefault("exports", {})[name] = json.loads(export.read_text())
        if out is not None:
            out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
