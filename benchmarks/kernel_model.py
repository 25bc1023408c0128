"""PREDICTED times of the forward kernel on GPUs that are not at hand, from its machine code; nothing here is measured.

    python benchmarks/kernel_model.py [--out docs/benchmarks/kernel_model.json]

Instructions are counted in the cubins (`sass.py`), loop by loop, times how often a loop runs. One multiprocessor, the
busiest, is then walked through the phases of its blocks. In each phase a block asks for cycles of the tanh unit, for
issue slots, for bytes of the L2 cache and for time in which it only waits; blocks that are there together share the
three, all slowed down alike (`walk`). That order is the worst for overlap: blocks that begin together stay together,
and what one does between its scores is hidden behind another's only where they differ.

The kernel before this one (`BEFORE`) is predicted the same way, for comparison.
"""

import itertools
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import sass
from cuda.core import Program, ProgramOptions
from results import Results

from sdpl.kernels.compile import source
from sdpl.kernels.plan import Shape, plan_tiled

BEFORE = "0ed4545"  # the last commit with a block of 7 warps, 7 locations each
K, E = 1024, 512
GRID = list(itertools.product((20, 80, 500, 9600), (1, 8, 32, 128), (49, 196)))  # C, B, L
QUARTERS = 4  # of a multiprocessor: each issues one instruction a cycle
TANH_CYCLES = 8  # of a quarter's tanh unit for a warp: 16 a clock and multiprocessor (CUDA C++ Programming Guide,
# "Arithmetic Instructions", other special functions). benchmarks/kernel.py measures it where there is a GPU.
WAIT_L2, WAIT_L1, WAIT_BARRIER = 270, 35, 30  # cycles; usual results of public microbenchmarks
WAIT_SUMS = 125  # of five dependent shuffles and adds
WAIT_SOFTMAX = 500  # two reductions over a warp, exponentials, shared memory
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
    """Instructions of a forward kernel, by where they are."""

    def __init__(self, lines: list):
        every = sass.loops(lines)
        self.registers = sass.registers(lines)
        main = max(every, key=lambda loop: loop.own.count(sass.TANH))
        around = [loop for loop in every if loop.first <= main.first and main.last <= loop.last and loop is not main]
        inner = [loop for loop in every if not any(_inside(other, loop) for other in every if other is not loop)]
        pools = [loop for loop in inner if sass.TANH not in loop.own and _loads(loop) and loop.own.count("FFMA") >= 8]
        pool = max(pools, key=lambda loop: len(loop.own))
        self.main, self.tanh = len(main.own), main.own.count(sass.TANH)
        self.around = sum(len(loop.own) for loop in around)  # straight code between two main loops
        self.pool, self.pool_rows = len(pool.own), sum(op.startswith("LDG") for op in pool.own)
        beside = [loop for loop in every if loop not in (main, pool, *around)]
        self.left = max((len(loop.own) for loop in beside if sass.TANH in loop.own), default=0)  # a location
        self.columns = sum(len(loop.own) for loop in beside if _inside(pool, loop))
        self.by_location = sum(len(loop.own) for loop in beside if loop in inner and not _loads(loop))  # 128 a turn

    @property
    def per_tanh(self) -> float:
        return self.main / self.tanh


def _inside(one: sass.Loop, other: sass.Loop) -> bool:
    return other.first <= one.first and one.last <= other.last


def _loads(loop: sass.Loop) -> bool:
    return any(op.startswith("LDG") for op in loop.own)


def now(code: Code, gpu: Gpu, shape: Shape, tc: int, polynomial: int) -> tuple[float, float]:
    """Cycles of the kernel as it is, and bytes from L2."""
    of_image = -(-shape.C // tc)
    tiles = shape.B * of_image
    mine = -(-tiles // gpu.multiprocessors)  # of the busiest multiprocessor, side by side
    resident = min(3, mine)
    row_bytes = 2 * shape.L * (shape.K + shape.E)
    g_bytes = 2 * shape.L * shape.E
    tile_bytes = row_bytes + 2 * tc * shape.K + 4 * shape.K + 4 * tc * shape.E
    images = 1 if mine <= of_image else 2  # that its blocks are at, at one time
    kept = row_bytes * images + resident * 4 * tc * (5 * shape.L + 15) < 0.9 * gpu.l1_bytes
    brings = gpu.l1_bytes > 128 << 10  # SDPL_LARGE_L1 of the source
    turns, left = divmod(shape.L, 7)
    tanh = shape.L * 8 * tc * TANH_CYCLES * (8 - polynomial) / 8
    issue = turns * code.main + left * code.left
    blocks = []
    for i in range(resident):
        own = mine // resident + (i < mine % resident)
        phases: list[Phase] = []
        for n in range(own):
            fresh = (i == n == 0) or (resident * n + i) % of_image == 0
            read = tile_bytes if fresh or not kept else tile_bytes - row_bytes
            read -= min(read, g_bytes) if n == 0 and not brings else 0  # the first round has nothing to pool
            phases += [
                Phase(wait=2 * WAIT_L2 if n == 0 else WAIT_L2),
                Phase(tanh, issue, read, (turns + left) * WAIT_SUMS),
                Phase(
                    issue=code.around + code.columns + shape.L // 128 * code.by_location,
                    wait=2 * WAIT_BARRIER + WAIT_SOFTMAX,
                ),
            ]
        batches = -(-shape.L // code.pool_rows)  # the last tile is pooled alone
        read, wait = (0, WAIT_L1) if kept and (own > 1 or brings) else (g_bytes, WAIT_L2)
        phases.append(Phase(issue=batches * code.pool, l2=read, wait=batches * wait))
        phases.append(Phase(wait=WAIT_L2 + WAIT_SUMS + WAIT_BARRIER))
        blocks.append(phases)
    share = min(BYTES_PER_CLOCK, gpu.l2_bytes_per_clock / min(gpu.multiprocessors, tiles))
    fetches = min(tiles, max(shape.B, gpu.multiprocessors)) if kept else tiles
    read_in_all = tiles * (tile_bytes - row_bytes) + fetches * row_bytes
    return walk(blocks, resident, share), read_in_all


def before(code: Code, gpu: Gpu, shape: Shape, tc: int) -> tuple[float, float]:
    """The same of the kernel before: blocks of 7 warps with 7 locations each, three phases between barriers."""
    blocks = shape.B * -(-shape.C // tc)
    mine = -(-blocks // gpu.multiprocessors)
    warps = 2 if mine == 1 else 4 / 2  # on the busiest quarter, of a block: 7 warps on 4 quarters, 14 on 4
    turns = -(-shape.L // 49)
    tanh = turns * 7 * shape.K / 32 * tc * TANH_CYCLES * warps
    issue = warps * turns * (code.around + shape.K / 256 * code.main)
    warps_of_passes = 7 + 7 + 2  # a column per thread: 3 passes, 64 in the last
    pool = warps_of_passes / QUARTERS * shape.L / code.pool_rows * code.pool
    read = 2 * shape.L * shape.K + turns * (2 * tc + 4) * shape.K + 4 * tc * shape.E  # 7 warps side by side share v
    phases = [
        Phase(wait=2 * WAIT_L2),
        Phase(tanh, issue, read, turns * (shape.K / 256 * WAIT_L2 / 2 + 7 * tc * WAIT_SUMS / 4)),
        Phase(issue=200, wait=2 * WAIT_BARRIER + WAIT_SOFTMAX),
        Phase(issue=pool, l2=2 * shape.L * shape.E, wait=3 * shape.L / code.pool_rows * WAIT_L2),
        Phase(issue=100, wait=2 * tc * WAIT_SUMS + WAIT_BARRIER),
    ]
    share = min(BYTES_PER_CLOCK, gpu.l2_bytes_per_clock / min(gpu.multiprocessors, blocks))
    return walk([phases] * mine, 2, share), blocks * (read + 2 * shape.L * shape.E)


def before_tile(shape: Shape, gpu: Gpu) -> int:
    """The plan of the kernel before: the most categories with which there are two blocks for every multiprocessor."""
    enough = [tc for tc in (4, 2, 1) if shape.B * -(-shape.C // tc) >= 2 * gpu.multiprocessors]
    return enough[0] if enough else 1


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


def codes(text: str, gpu: Gpu, polynomial: int = 0) -> dict[int, Code]:
    """The forward kernels of a source for float16, by categories per tile."""
    macros = [("SDPL_DTYPE", "16"), ("SDPL_POLYNOMIAL", str(polynomial))]
    options = ProgramOptions(arch=f"sm_{gpu.capability}", std="c++17", define_macro=macros)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.cubin"
        path.write_bytes(bytes(Program(text, "c++", options).compile("cubin").code))
        kernels = sass.functions(path)
    return {tc: Code(kernels[f"forward_f16_c{tc}_aligned"]) for tc in (1, 2, 4)}


def row(gpu: Gpu, shape: Shape, cycles: float, read: float, tc: int) -> dict:
    """What is predicted of one size. share_of_tanh_ceiling: of the kernel alone, as 16 tanh a clock and multiprocessor
    are 1."""
    ceiling = shape.B * shape.C * shape.L * shape.K / 16 / gpu.multiprocessors
    us = cycles / gpu.clock_ghz / 1000
    return {
        "categories_a_tile": tc,
        "us": round(us, 2),
        "us_in_a_graph": round(us + IN_GRAPH_US, 2),
        "share_of_tanh_ceiling": round(ceiling / cycles, 3),
        "l2_bytes_a_clock": round(read / cycles),
    }


def predict(gpu: Gpu, old: str | None) -> dict:
    """Counts and rows of one GPU."""
    mine = {polynomial: codes(source(), gpu, polynomial) for polynomial in (0, 2)}
    theirs = codes(old, gpu) if old else {}
    counts = {
        f"{name} c{tc}": {
            "instructions_per_tanh": round(code.main / code.tanh * of_unit, 2),
            "registers": code.registers,
        }
        for name, kernels, of_unit in (
            ("now", mine[0], 1),
            ("2 of 8 by polynomial", mine[2], 6 / 8),
            ("before", theirs, 1),
        )
        for tc, code in kernels.items()
    }
    rows = {}
    for C, B, L in GRID:
        shape = Shape(B, L, C, K, E)
        tc = int(plan_tiled("forward", shape, "float16", True, gpu.multiprocessors).entry.split("_c")[1][0])
        found = {"now": row(gpu, shape, *now(mine[0][tc], gpu, shape, tc, 0), tc)}
        found["polynomial"] = row(gpu, shape, *now(mine[2][tc], gpu, shape, tc, 2), tc)
        tiles = {tc: row(gpu, shape, *now(code, gpu, shape, tc, 0), tc)["us"] for tc, code in mine[0].items()}
        found["by_tile_us"] = tiles
        if theirs:
            other = before_tile(shape, gpu)
            found["before"] = row(gpu, shape, *before(theirs[other], gpu, shape, other), other)
        if C >= 500:
            found["separable_8_terms_us"] = round(separable(gpu, shape, 8), 1)
        rows[f"C={C} B={B} L={L}"] = found
    return {"counts": counts, "sizes": rows}


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
def main(out: Path | None) -> None:
    old = f"{BEFORE}:sdpl/kernels/bilinear_attention_pool.cu"
    show = subprocess.run(["git", "show", old], cwd=Path(__file__).parent, capture_output=True, text=True)
    if show.returncode:
        print(f"without the kernel before: git has no {BEFORE} here", file=sys.stderr)
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
        results.add(gpu.name, predict(gpu, show.stdout or None))


if __name__ == "__main__":
    main()
