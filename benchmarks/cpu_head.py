"""The head alone on a CPU, batch 1: exported (ONNX Runtime, OpenVINO) against the research formulation (PyTorch eager).

    python benchmarks/cpu_head.py [--out docs/benchmarks/cpu_head.json]

Wall and CPU time (of all threads) are medians of repeated calls; on a machine that is not quiet only the latter, with
`--threads 1`, says something. Peak memory is the growth of the process's resident set over one call's
lifetime, in a fresh process per row, after the weights are loaded and the engine is created.
"""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from research import D, E, K, L, ResearchHead
from torch import nn

from sdpl.cores import physical_cores
from sdpl.export.fold import FoldedHead
from sdpl.export.head import add_head
from sdpl.export.onnx import encoder_to_onnx, lowered
from sdpl.export.separable import separate
from sdpl.runtime.bench import measure, summarize
from sdpl.runtime.environment import environment
from sdpl.targets import BACKENDS

CATEGORIES = (20, 80, 500, 2000)
SIDES = ("exact", "separable", "exact openvino", "separable openvino", "research")


class Identity(nn.Module):
    """In place of the trunk: the input already is f [B,L,D]."""

    def locations(self, f: torch.Tensor) -> torch.Tensor:
        return f


def write_heads(categories: int, folder: Path) -> float:
    """Both forms of the folded head as ONNX, f [B,L,D] -> scores [B,C]; the share of attention the separable one moves.

    It is fitted as an export does, to features of other draws than those it is measured on.
    """
    torch.manual_seed(0)
    weight, bias = torch.randn(D, K + E) / D**0.5, torch.zeros(K + E)
    q = 3 * torch.randn(K) / K**0.5
    head = FoldedHead(weight, bias, torch.randn(categories, K), q, torch.randn(categories, E))
    encoder = encoder_to_onnx(Identity(), head, torch.randn(2, L, D))
    u, held_out = ((torch.randn(16, L, D) @ weight[:, :K]).numpy() for _ in range(2))
    fitted = separate(u, held_out, head.v.numpy(), head.q.numpy())
    constants = {"x": fitted.x, "weight": fitted.weight, "t": head.t.numpy()}
    for kind, values in (("separable", constants), ("exact", head.constants)):
        model = onnx.ModelProto.FromString(encoder.SerializeToString())
        onnx.save(lowered(add_head(model, values, "sigmoid", kind)), folder / f"{kind}.onnx")
    return fitted.attention_moved


def exported(categories: int, path: str, threads: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    f = np.random.default_rng(0).standard_normal((1, L, D), dtype=np.float32)
    return lambda: session.run(["scores"], {"image": f})


def in_openvino(categories: int, path: str, threads: int):
    openvino = BACKENDS["openvino"].load()
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    f = np.random.default_rng(0).standard_normal((1, L, D), dtype=np.float32)
    return lambda: request.infer({"image": f})


def research(categories: int, path: str, threads: int):
    torch.set_num_threads(threads)
    head, f = ResearchHead(categories).eval(), torch.randn(1, L, D)

    def call():
        with torch.inference_mode():
            return head(f).sigmoid()

    return call


def one_row(side: str, categories: int, path: str, threads: int) -> dict:
    """Runs in its own process, so that nothing else has raised the peak before."""
    make = research if side == "research" else in_openvino if side.endswith("openvino") else exported
    call = make(categories, path, threads)
    peak_mb = peak_growth_mb(call)
    cpu_ms = []

    def timed():
        before = time.process_time()
        call()
        cpu_ms.append(1000 * (time.process_time() - before))

    row = summarize(side, 1, *measure(timed, seconds=2, min_runs=5))
    shown = {"p50_ms": row.p50_ms, "spread": row.spread, "runs": row.runs, "peak_mb": peak_mb}
    return {"side": side, "categories": categories, "threads": threads, "cpu_ms": statistics.median(cpu_ms), **shown}


def peak_growth_mb(call) -> float:
    """How far the process's resident set grows above its level before, during one call (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is still resident would hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_mb("VmRSS")
    call()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--threads", default=physical_cores(), show_default=True)
@click.option("--row", nargs=3, hidden=True)
def main(out: Path | None, threads: int, row: tuple[str, str, str] | None) -> None:
    if row:
        print(json.dumps(one_row(row[0], int(row[1]), row[2], threads)))
        return
    rows = []
    for categories in CATEGORIES:
        with tempfile.TemporaryDirectory() as folder:
            moved = write_heads(categories, Path(folder))
            print(f"C={categories:<5d} the separable head moves {moved:.2%} of a category's attention")
            for side in SIDES:
                path = str(Path(folder) / f"{side.split()[0]}.onnx")
                command = [sys.executable, __file__, "--threads", str(threads), "--row", side, str(categories), path]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({**json.loads(result.stdout.splitlines()[-1]), "attention_moved": moved})
                shown = "C={categories:<5d} {side:18s} {p50_ms:9.2f} ms {cpu_ms:9.2f} ms of CPU, peak {peak_mb:8.1f} MB"
                print(shown.format(**rows[-1]), flush=True)
        *ours, theirs = (row["cpu_ms"] for row in rows[-len(SIDES) :])
        print(f"C={categories:<5d} times less CPU:", ", ".join(f"{theirs / mine:.1f}" for mine in ours))
    about = {**environment(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    report = {"environment": {**about, "openvino": BACKENDS["openvino"].load().__version__}, "rows": rows}
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
