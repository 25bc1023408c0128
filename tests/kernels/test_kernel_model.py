"""The model of the kernel: sharing and waiting add up as they should, and its file belongs to the plan of today."""

import json
from pathlib import Path

import pytest

pytest.importorskip("cuda.core", reason="needs the extra cuda")

from kernel_model import BYTES_PER_CLOCK, GPUS, Phase, runs, walk

from sdpl.kernels.plan import Shape, plan_tiled

FILE = Path(__file__).parents[2] / "docs" / "benchmarks" / "kernel_model.json"
SCORES, WAIT = Phase(tanh=1000, issue=500), Phase(wait=300)


@pytest.mark.parametrize(
    ("blocks", "resident", "cycles"),
    [
        ([[SCORES]], 1, 1000),
        ([[SCORES]] * 2, 2, 2000),  # they share the tanh unit
        ([[SCORES]] * 3, 1, 3000),
        ([[WAIT]] * 3, 3, 300),  # waiting is for all at once
        ([[WAIT]] * 3, 1, 900),
        ([[SCORES, WAIT]] * 2, 2, 2300),  # in step, nothing is hidden
        ([[SCORES, WAIT], [WAIT, SCORES]], 2, 2000),  # 300 of one; 1400 shared; 300 of the other, beside a wait
        ([[Phase(issue=1000, wait=1000)]] * 2, 2, 2000),  # each fills the other's wait
        ([[Phase(l2=BYTES_PER_CLOCK * 100)]], 1, 200),  # half of the port, when all ask
    ],
)
def test_walk(blocks, resident, cycles):
    assert walk(blocks, resident, BYTES_PER_CLOCK / 2) == pytest.approx(
        cycles, rel=0.25 if len(blocks[0]) > 1 else 0.01
    )


@pytest.mark.parametrize("gpu", GPUS, ids=[gpu.capability for gpu in GPUS])
def test_the_file_is_of_today_s_plan_and_no_prediction_passes_the_ceiling(gpu):
    sizes = json.loads(FILE.read_text())["results"][gpu.name]["sizes"]
    assert len(sizes) == 32
    for name, found in sizes.items():
        C, B, L = (int(part.split("=")[1]) for part in name.split())
        plan = plan_tiled("forward", Shape(B, L, C, 1024, 512), "float16", True, gpu.multiprocessors)
        assert plan.tiling[0] == found["pairs_a_multiprocessor"], name
        assert plan.grid[1] == found["blocks_a_multiprocessor"], name
        assert 0 < found["now"]["share_of_tanh_ceiling"] <= 1
        assert found["now"]["us"] <= 1.15 * min(found["by_blocks_us"].values()), f"{name}: other blocks are much faster"


@pytest.mark.parametrize("sizes", [(8, 80), (1, 500), (3, 7), (128, 80)])
def test_the_runs_of_the_model_are_the_kernel_s(sizes):
    """Every multiprocessor's pairs, whole tiles of one image."""
    shape = Shape(sizes[0], 49, sizes[1], 1024, 512)
    plan = plan_tiled("forward", shape, "float16", True, 132)
    blocks = runs(shape, plan)
    assert sum(tc for tiles in blocks for _, tc in tiles) == plan.tiling[0]
    assert len(blocks) == plan.grid[1]
    assert all(1 <= tc <= 4 for tiles in blocks for _, tc in tiles)
