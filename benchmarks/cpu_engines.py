"""Whole models on a CPU, every engine taking turns: sdpl's targets, plain ONNX Runtime and OpenVINO, and PyTorch.

    python benchmarks/cpu_engines.py WORK [--model rn101] [--rounds 2] [--out docs/benchmarks/cpu_engines.json]

RN50 and ViT-B-16 at 224 pixels, RN101 at 448, C=80, random weights (speed does not depend on them; what int8 does to
accuracy `make demo` measures), batches of 1 and 8: uint8 images in memory to scores. Each side of each round runs in a
process of its own. What was measured is kept in WORK, line by line: called again, the script goes on where it stopped,
so that long rounds can be cut. "research" is the formulation of published code (`research.py`), all others the folded
model; "pytorch" sides run the trained modules as they are, with the head's P and F_att kept apart.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

MODELS = {"rn50": ("RN50", 224), "rn101": ("RN101", 448), "vit": ("ViT-B-16", 224)}
OURS = ("cpu:fp32", "openvino:fp32", "openvino:bf16", "cpu:int8", "openvino:int8")
PLAIN = ("onnxruntime", "openvino f32", "openvino bf16")
PYTORCH = ("research", "eager", "channels_last", "eager bf16", "channels_last bf16", "inductor", "inductor frozen")
SIDES = (*OURS, *PLAIN, *(f"pytorch {name}" for name in PYTORCH))
BATCHES = (1, 8)
Scorer = Callable[[np.ndarray], Any]


def prepare(name: str, work: Path) -> None:
    """A checkpoint and its bundle with every target, unless they are there."""
    import torch
    from cpu_model import coco_model

    from sdpl.demo.scenes import write_coco
    from sdpl.train.checkpoint import save_checkpoint

    backbone, size = MODELS[name]
    if not (work / f"{name}.ckpt").exists():
        config, model = coco_model(backbone, size)
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


def scorer_of(name: str, side: str, work: Path) -> Scorer:
    """One side, ready to score."""
    bundle = work / f"{name}.sdpl"
    if side in OURS:
        from sdpl.runtime import Recognizer

        return Recognizer.open(bundle, side).scores
    if side == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda images: session.run(["scores"], {"image": images})
    if side.startswith("openvino "):
        import openvino

        config = {"INFERENCE_PRECISION_HINT": side.split()[1]}
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
        if side.startswith("inductor"):
            torch._inductor.config.freezing = side.endswith("frozen")
            model.encoder.locations = torch.compile(model.encoder.locations)
        score = model.scorer()

    def scores(images: np.ndarray) -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in side):
            return score(images)

    return scores


def one_side(name: str, side: str, work: Path, seconds: float) -> dict[str, Any]:
    """Times of one side at every batch; runs in its own process, since waiting threads slow other libraries down."""
    size = MODELS[name][1]
    started = time.perf_counter()
    scores = scorer_of(name, side, work)
    row: dict[str, Any] = {"model": name, "side": side, "ready_s": time.perf_counter() - started}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        for _ in range(2 if batch == 1 else 1):
            scores(images)
        times_ms, cpu, start = [], time.process_time(), time.perf_counter()
        while len(times_ms) < 3 or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            scores(images)
            times_ms.append(1000 * (time.perf_counter() - before))
        cpu_ms = 1000 * (time.process_time() - cpu) / len(times_ms)
        row[f"batch {batch}"] = {"p50_ms": statistics.median(times_ms), "min_ms": min(times_ms), "runs": len(times_ms)}
        row[f"batch {batch}"] |= {"cpu_ms": cpu_ms}  # of all threads, for one call
    return row | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each model and batch: the quietest round's median of each side, and how many times faster than research."""
    found: dict[str, Any] = {}
    for name in MODELS:
        mine = [row for row in rows if row["model"] == name]
        for batch in (f"batch {size}" for size in BATCHES):
            best = {
                side: min((row for row in mine if row["side"] == side), key=lambda row: row[batch]["p50_ms"])
                for side in dict.fromkeys(row["side"] for row in mine)
            }
            slowest = best.get("pytorch research")
            for side, row in best.items():
                times = slowest[batch]["p50_ms"] / row[batch]["p50_ms"] if slowest else None
                cell = {**row[batch], "peak_mb": row["peak_mb"], "times_faster_than_research": times}
                found.setdefault(name, {}).setdefault(batch, {})[side] = cell
    return found


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)))
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES))
@click.option("--rounds", default=2, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="For each side, batch and round; at least 3 calls.")
@click.option("--limit", default=280.0, show_default=True, help="Stop after so many seconds; call again to go on.")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--one", nargs=2, hidden=True)
def main(
    work: Path,
    models: tuple[str, ...],
    sides: tuple[str, ...],
    rounds: int,
    seconds: float,
    limit: float,
    out: Path | None,
    one: tuple[str, str] | None,
) -> None:
    if one:
        print(json.dumps(one_side(one[0], one[1], work, seconds)))
        return
    work.mkdir(parents=True, exist_ok=True)
    kept, started = work / "rows.jsonl", time.perf_counter()
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number in range(rounds):
        for name in models or MODELS:
            for side in sides or SIDES:
                if any((row["round"], row["model"], row["side"]) == (number, name, side) for row in rows):
                    continue
                if time.perf_counter() - started > limit:
                    raise SystemExit(75)  # to be called again
                prepare(name, work)
                command = [sys.executable, __file__, str(work), "--seconds", str(seconds), "--one", name, side]
                result = subprocess.run(command, capture_output=True, text=True)
                if result.returncode != 0:
                    raise click.ClickException(f"{name}, {side}: {result.stderr[-2000:]}")
                rows.append({"round": number, **json.loads(result.stdout.splitlines()[-1])})
                with open(kept, "a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
                shown = ", ".join(f"{rows[-1][f'batch {b}']['p50_ms']:.1f} ms at batch {b}" for b in BATCHES)
                print(f"round {number}, {name}, {side}: {shown}", flush=True)
    if out is not None:
        import torch

        from sdpl.runtime.environment import environment
        from sdpl.runtime.machine import packages

        files = {name: work / f"{name}.export.json" for name in MODELS}
        exports = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
        about = {**environment(), **packages(), "torch": torch.__version__}
        report = {"environment": about, "exports": exports, "summary": summary(rows), "rows": rows}
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
