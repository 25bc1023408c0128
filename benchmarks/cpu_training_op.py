"""The attention scores in training, on a CPU: the recomputing operator against plain autograd, forward and backward.

    python benchmarks/cpu_training_op.py [--out docs/benchmarks/cpu_training_op.json]

C=80, L=49, K=1024, float32, batch 4, 16 and 64. "plain" is the folded formula written with tensor operations;
"research" applies the K x K layer to every (location, category) pair. Peak memory as in cpu_head.py, one process per
row.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
import torch
from cpu_head import peak_growth_mb
from research import K, L

from sdpl.kernels.torch_op import attention_logits
from sdpl.runtime.bench import measure, summarize
from sdpl.runtime.environment import environment

C = 80
BATCHES = (4, 16, 64)


def plain(u, v, q, joint):
    return torch.tanh(u[:, None] * v[None, :, None]) @ q  # [B,C,L]


def research(u, v, q, joint):
    return joint(torch.tanh(u[:, None] * v[None, :, None])) @ q  # [B,C,L]


SIDES = {
    "operator": lambda u, v, q, joint: attention_logits(u, v, q),
    "plain": plain,
    "research": research,
}


def one_row(side: str, batch: int) -> dict:
    torch.manual_seed(0)
    joint = torch.nn.Linear(K, K)
    inputs = [torch.randn(s).requires_grad_() for s in ((batch, L, K), (C, K), (K,))]
    ds = torch.randn(batch, C, L)

    def call():
        torch.autograd.backward(SIDES[side](*inputs, joint), ds)
        for x in (*inputs, *joint.parameters()):
            x.grad = None

    peak_mb = peak_growth_mb(call)
    row = summarize(side, batch, *measure(call, seconds=4, min_runs=3))
    return {
        "side": side,
        "batch": batch,
        "p50_ms": row.p50_ms,
        "spread": row.spread,
        "runs": row.runs,
        "peak_mb": peak_mb,
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--row", nargs=2, hidden=True)
def main(out: Path | None, row: tuple[str, str] | None) -> None:
    if row:
        print(json.dumps(one_row(row[0], int(row[1]))))
        return
    rows = []
    for batch in BATCHES:
        for side in SIDES:
            if side == "research" and batch > 16:
                continue  # needs more than 3 GB and half a minute a call
            command = [sys.executable, __file__, "--row", side, str(batch)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
            shown = "B={batch:<3d} {side:9s} {p50_ms:9.1f} ms   peak {peak_mb:8.1f} MB"
            print(shown.format(**rows[-1]), flush=True)
    if out is not None:
        report = {"environment": {**environment(), "torch": torch.__version__}, "rows": rows}
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
