"""PREDICTED times of the forward kernel on GPUs that are not at hand, from its machine code; nothing here is measured.

    python benchmarks/kernel_model.py [--out docs/benchmarks/kernel_model.json]

Instructions are counted in the cubins (`sass.py`), loop by loop, times how often a loop runs. One multiprocessor, the
busiest, is then walked through the phases of its blocks. In each phase a block asks for cycles of the tanh unit, for
issue slots, for bytes of the L2 cache and for time in which it only waits; blocks that are there together share the
three, all slowed down alike (`walk`). That order is the worst for overlap: blocks that begin together stay together,
and what one does between its scores is hidden behind another's only where they differ.

Blocks (x, y) for each y are taken to run on one multiprocessor, which nothing guarantees.
"""

import itertools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
import sass
from results import Results

from sdpl.kernels.compile import constants, cubin
from sdpl.kernels.plan import Launch, Shape, plan_tiled

K, E = 1024, 512
GRID = list(itertools.product((20, 80, 500, 9600), (1, 8, 32, 128), (49, 196)))  # C, B, L
STEP = constants()["TILE_L"]
QUARTERS = 4  # of a multiprocessor: each issues one instruction a cycle
TANH_CYCLES = 8  # of a quarter's tanh unit for a warp: 16 a clock and multiprocessor (CUDA C++ Programming Guide,
# "Arithmetic Instructions", other special functions). benchmarks/kernel.py measures it where there is a GPU.
WAIT_L2, WAIT_L1, WAIT_BARRIER = 270, 35, 30  # cycles; usual results of public microbenchmarks
WAIT_SUMS = 125  # of five dependent shuffles and adds
WAIT_WEIGHTS = 200  # shared memory, three shuffles and maxima, two exponentials, shared memory again
WAIT_LOGIT = 100  # shared memory, square root, division
BYTES_PER_CLOCK = 64  # from L2 into one multiprocessor
IN_GRAPH_US = 1.3  # from the end of one kernel of a CUDA graph to the start of the next: assumed


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: str
    multiprocessors: int
    clock_ghz: float
    l1_bytes: int  # with shared memory
    l2_bytes_per_clock: int
    tensor_flops: float  # a second: float16 with float32 sums, dense
    memory_bytes_per_s: float


GPUS = (
    # NVIDIA Ampere GA102 whitepaper: 82 SMs, boost 1.695 GHz, 128 KB, 936 GB/s, 71 TFLOPS (float32 accumulate). L2: 12
    # memory partitions with 4 slices of 64 B a clock are 3072 at most; two thirds of that are assumed to be reached.
    Gpu("RTX 3090", "86", 82, 1.695, 128 << 10, 2000, 71e12, 936e9),
    # NVIDIA H100 datasheet and whitepaper, SXM: 132 SMs, 989 TFLOPS dense, which is 1.83 GHz; 256 KB, 3.35 TB/s. An
    # H200 is the same chip with 4.8 TB/s. L2: 5120 B a clock as the A100 whitepaper says of its own; 3000 are assumed.
    Gpu("H100 / H200", "90", 132, 1.83, 256 << 10, 3000, 989e12, 3.35e12),
)


@dataclass(frozen=True)
class Phase:
    """Of a block: cycles of the tanh unit and issue slots of its busiest quarter, bytes from L2, and the least time."""

    tanh: float = 0
    issue: float = 0
    l2: float = 0
    wait: float = 0

    @property
    def alone(self) -> float:
        return max(self.tanh, self.issue, self.l2 / BYTES_PER_CLOCK) + self.wait or 1


def walk(blocks: list[list[Phase]], resident: int, l2_share: float) -> float:
    """Cycles until a multiprocessor has done all blocks, so many at a time, in order."""
    waiting, running, time = list(blocks), [], 0.0
    while waiting or running:
        while waiting and len(running) < resident:
            running.append([list(waiting.pop(0)), 1.0])  # phases that are left, and how much of the first
        now = [phases[0] for phases, _ in running]
        rate = [1 / phase.alone for phase in now]
        slower = 1.0
        for asked, there in (("tanh", 1), ("issue", 1), ("l2", l2_share)):
            demand = sum(getattr(phase, asked) * each for phase, each in zip(now, rate, strict=True))
            slower = min(slower, there / demand if demand else 1)
        step = min(left / (each * slower) for (_, left), each in zip(running, rate, strict=True))
        time += step
        for entry, each in zip(running, rate, strict=True):
            entry[1] -= step * each * slower
            if entry[1] <= 1e-9:
                entry[0].pop(0)
                entry[1] = 1.0
        running = [entry for entry in running if entry[0]]
    return time


class Code:
    """Instructions of a forward kernel for tiles of tc categories, by where they are."""

    def __init__(self, lines: list, tc: int, polynomial: int):
        every = sorted(sass.loops(lines), key=lambda loop: loop.first)
        self.registers = sass.registers(lines)
        self.tanh = tc * (STEP * 8 - polynomials(polynomial))
        main = next(loop for loop in every if loop.own.count(sass.TANH) == self.tanh)
        pool = next(loop for loop in every if loop.first > main.last and _loads(loop) >= STEP)  # a step, alone
        run = max(every, key=lambda loop: loop.last - loop.first)  # of tiles of every size
        sizes = sum(sass.TANH in loop.own for loop in every)
        self.main, self.pool = len(main.own), len(pool.own)
        self.start = len(_around(every, main).own)
        self.end = len(_around(every, pool).own) + len(run.own) / sizes


def polynomials(most: int) -> int:
    """Of the 56 tanh of a category, lane and step, those by polynomial: `polynomials` of the source."""
    return sum(most - (most > 0 and i % 2 == 0) for i in range(STEP))


def _around(every: list[sass.Loop], inner: sass.Loop) -> sass.Loop:
    """The smallest loop around a loop."""
    return min((loop for loop in every if _inside(inner, loop) and loop is not inner), key=lambda x: x.last - x.first)


def _inside(one: sass.Loop, other: sass.Loop) -> bool:
    return other.first <= one.first and one.last <= other.last


def _loads(loop: sass.Loop) -> int:
    return sum(op.startswith("LDG") for op in loop.own)


def runs(shape: Shape, plan: Launch) -> list[list[tuple[int, int]]]:
    """The tiles (image, categories) of the blocks of a multiprocessor, as `Pairs` of the source has them: of some of
    the busiest, the one with most tiles."""
    multiprocessors, resident, _ = plan.grid
    each, most = plan.tiling

    def tiles(at: int, last: int) -> list[tuple[int, int]]:
        found = []
        while at < last:
            of_image = min(last - at, shape.C - at % shape.C)
            found.append((at // shape.C, of_image if of_image <= most else min(most, -(-of_image // 2))))
            at += found[-1][1]
        return found

    def blocks(which: int) -> list[list[tuple[int, int]]]:
        first, here = which * each, min(each, shape.B * shape.C - which * each)
        cuts = [first + here * i // resident for i in range(resident + 1)]
        return [tiles(*ends) for ends in itertools.pairwise(cuts)]

    full = range(shape.B * shape.C // each)  # that have `each` pairs
    return max(map(blocks, full[:: max(1, len(full) // 16)]), key=lambda found: sum(map(len, found)))


def now(codes: dict[int, Code], gpu: Gpu, shape: Shape, polynomial: int, plan: Launch) -> tuple[float, float]:
    """Cycles of the kernel as it is, and bytes from L2."""
    row_bytes = 2 * shape.L * (shape.K + shape.E)
    steps, of_unit = -(-shape.L // STEP), 1 - polynomials(polynomial) / (8 * STEP)
    of_blocks = runs(shape, plan)
    images = {image for tiles in of_blocks for image, _ in tiles}
    at_once = 1 if len(images) == 1 else 2  # images that its blocks are at, at one time
    kept = row_bytes * at_once + len(of_blocks) * plan.shared_bytes < 0.9 * gpu.l1_bytes
    blocks: list[list[Phase]] = []
    seen: set[int] = set()
    read_here = 0
    for tiles in of_blocks:
        phases: list[Phase] = []
        for image, tc in tiles:
            code = codes[tc]
            read = 2 * tc * shape.K + 4 * shape.K + 4 * tc * shape.E
            read += 0 if kept and image in seen else row_bytes
            seen.add(image)
            read_here += read
            between = (
                2 * 8 * tc * TANH_CYCLES * (8 - polynomial) / 8
            )  # two locations are scored before weights are used
            phases += [
                Phase(issue=code.start, wait=WAIT_L2 if phases else 2 * WAIT_L2),
                Phase(
                    steps * STEP * 8 * tc * TANH_CYCLES * of_unit,
                    steps * code.main,
                    read,
                    steps * (WAIT_SUMS + WAIT_BARRIER + max(0, WAIT_WEIGHTS - between)),
                ),
                Phase(issue=code.pool + code.end, wait=2 * WAIT_BARRIER + WAIT_L2 + WAIT_SUMS + WAIT_LOGIT),
            ]
        blocks.append(phases)
    share = min(BYTES_PER_CLOCK, gpu.l2_bytes_per_clock / plan.grid[0])
    return walk(blocks, len(blocks), share), read_here * plan.grid[0]


def separable(gpu: Gpu, shape: Shape, rank: int) -> float:
    """Microseconds of the separable head by a library's matrix product, softmax and pooling in kernels of their own.

    60 % of the tensor cores' peak and 80 % of the memory's bandwidth are assumed; terms and scores pass through memory
    once each way, weights once. Four kernels.
    """
    rows, terms = shape.B * shape.L, rank * shape.K
    flops = 2 * rows * terms * shape.C + 2 * rows * shape.C * shape.E
    tanh = rows * terms / (16 * gpu.multiprocessors * gpu.clock_ghz * 1e9)
    moved = 2 * (2 * rows * terms + terms * shape.C + 4 * rows * shape.C + 2 * shape.B * shape.C * shape.E)
    return (
        1e6 * (max(flops / (0.6 * gpu.tensor_flops), moved / (0.8 * gpu.memory_bytes_per_s)) + tanh) + 4 * IN_GRAPH_US
    )


def codes(gpu: Gpu, polynomial: int) -> dict[int, Code]:
    """The forward kernel for float16, by categories of a tile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.cubin"
        path.write_bytes(cubin(gpu.capability, "float16", polynomial=polynomial))
        lines = sass.functions(path)["forward_f16_aligned"]
    return {tc: Code(lines, tc, polynomial) for tc in (1, 2, 3, 4)}


def row(gpu: Gpu, shape: Shape, found: tuple[float, float]) -> dict:
    """What is predicted of one size. share_of_tanh_ceiling: of the kernel alone, as 16 tanh a clock and multiprocessor
    are 1."""
    cycles, read = found
    ceiling = shape.B * shape.C * shape.L * shape.K / 16 / gpu.multiprocessors
    us = cycles / gpu.clock_ghz / 1000
    return {
        "us": round(us, 2),
        "us_in_a_graph": round(us + IN_GRAPH_US, 2),
        "share_of_tanh_ceiling": round(ceiling / cycles, 3),
        "l2_bytes_a_clock": round(read / cycles),
    }


def predict(gpu: Gpu) -> dict:
    """Counts and rows of one GPU."""
    of = {polynomial: codes(gpu, polynomial) for polynomial in (0, 2)}
    counts = {
        f"{name} c{tc}": {
            "instructions_per_tanh": round(code.main / (STEP * 8 * tc), 2),
            "registers": code.registers,
        }
        for name, kernel in (("now", of[0]), ("1 or 2 of 8 by polynomial", of[2]))
        for tc, code in kernel.items()
    }
    rows = {}
    for C, B, L in GRID:
        shape = Shape(B, L, C, K, E)
        plan = plan_tiled("forward", shape, "float16", True, gpu.multiprocessors)
        found = {"pairs_a_multiprocessor": plan.tiling[0], "blocks_a_multiprocessor": plan.grid[1]}
        found |= {"now": row(gpu, shape, now(of[0], gpu, shape, 0, plan))}
        found["polynomial"] = row(gpu, shape, now(of[2], gpu, shape, 2, plan))
        other = {n: replace(plan, grid=(plan.grid[0], n, 1)) for n in range(1, min(3, plan.tiling[0]) + 1)}
        found["by_blocks_us"] = {n: row(gpu, shape, now(of[0], gpu, shape, 0, p))["us"] for n, p in other.items()}
        if C >= 500:
            found["separable_8_terms_us"] = round(separable(gpu, shape, 8), 1)
        rows[f"C={C} B={B} L={L}"] = found
    return {"counts": counts, "sizes": rows}


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
def main(out: Path | None) -> None:
    about = {
        "kind": "PREDICTION by benchmarks/kernel_model.py; nothing was measured",
        "K": K,
        "E": E,
        "dtype": "float16",
    }
    if out is not None:
        out.unlink(missing_ok=True)
    results = Results(out, 0, **about)
    for gpu in GPUS:
        results.add(gpu.name, predict(gpu))


if __name__ == "__main__":
    main()
