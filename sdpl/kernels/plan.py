"""Which entry point and grid a shape takes. What follows from the kernels' own tile sizes is read from their source."""

from dataclasses import dataclass

from sdpl.kernels.compile import constants

MAX_LOCATIONS = 1024
MAX_GRID_YZ = 65535  # CUDA's limit for the second and third dimension of a grid
MAX_SHARED_BYTES = 48 << 10  # of a block, without asking for more
# In units of one category's tanh on a multiprocessor, as benchmarks/kernel_model.py predicts it:
PER_TILE = 0.25  # what a tile takes beside its categories
PER_LOAD = 2.0  # u and g of a tile from the L2 cache, when all multiprocessors ask at once
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Shape:
    """B images, L locations, C categories, K joint dimension, E embedding dimension."""

    B: int
    L: int
    C: int
    K: int
    E: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.L <= MAX_LOCATIONS:
            raise ValueError(f"L: expected 1 to {MAX_LOCATIONS} locations, got {self.L}")
        if min(self.C, self.K) < 1:
            raise ValueError(f"expected at least one category and K >= 1, got C={self.C}, K={self.K}")
        if self.B > MAX_GRID_YZ:
            raise ValueError(f"B: expected at most {MAX_GRID_YZ} images in one launch, got {self.B}")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: entry point, blocks, threads per block, dynamic shared memory in bytes."""

    entry: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int = 0


def plan_tiled(kernel: str, shape: Shape, dtype: str, aligned: bool, multiprocessors: int) -> Launch:
    """How to launch "forward" or "scores". aligned: whether rows are whole words; see `arrays.is_aligned`.

    A block walks through tiles of one image and 1, 2 or 4 categories, as many as every other block or one more. The
    more categories, the less is loaded and converted for each of them; but the busiest multiprocessor, which decides,
    has whole tiles.
    """
    cost = {}
    for tc in [1] if not aligned else [2, 1] if dtype == "float32" else [4, 2, 1]:
        if _shared_bytes(kernel, tc, shape.L) <= MAX_SHARED_BYTES:
            tiles = shape.B * _ceil(shape.C, tc)
            load = PER_LOAD * min(1, tiles / multiprocessors)
            cost[tc] = _ceil(tiles, multiprocessors) * max(tc + PER_TILE, load)
    tc = min(cost, key=cost.__getitem__)
    tiles = shape.B * _ceil(shape.C, tc)
    resident = min(constants()["FORWARD_BLOCKS"], _ceil(tiles, multiprocessors))
    grid = (min(tiles, multiprocessors), max(1, resident), 1)
    entry = f"{kernel}_{SHORT[dtype]}_c{tc}_{_suffix(aligned)}"
    return Launch(entry, grid, constants()["FORWARD_THREADS"], _shared_bytes(kernel, tc, shape.L))


def _suffix(aligned: bool) -> str:
    return "aligned" if aligned else "any"


def _shared_bytes(kernel: str, tc: int, locations: int) -> int:
    """Of a block: partial scores, and for "forward" weights, zeros and sums; see the source."""
    size = constants()
    floats = size["FORWARD_WARPS"] * locations * tc
    if kernel == "forward":
        floats += (locations + size["TILE_L"] + 2 * size["FORWARD_WARPS"]) * tc
    return 4 * floats


def plan_backward_u(shape: Shape, dtype: str, aligned: bool) -> Launch:
    """How to launch the backward kernel for u. aligned: as for `plan_tiled`."""
    threads = constants()["BACKWARD_THREADS"]
    columns = _ceil(shape.K, threads * constants()["BACKWARD_K"])
    grid = (columns, _ceil(shape.L, constants()["TILE_L"]), shape.B)
    return Launch(f"backward_u_{SHORT[dtype]}_{_suffix(aligned)}", grid, threads)


def plan_backward_vq(shape: Shape, dtype: str, aligned: bool, multiprocessors: int) -> tuple[Launch, int]:
    """How to launch the backward kernel for v and q, and into how many slices it cuts the batch. aligned: as for
    `plan_tiled`; it changes nothing of the slices.

    The slices fill the GPU when there are few categories; their sums are added in order afterwards.
    """
    threads = constants()["BACKWARD_THREADS"]
    columns = _ceil(shape.K, threads * constants()["BACKWARD_K"])
    tiles = _ceil(shape.C, constants()["BACKWARD_TC"])
    if tiles > MAX_GRID_YZ:
        raise ValueError(f"C: expected at most {MAX_GRID_YZ * constants()['BACKWARD_TC']} categories, got {shape.C}")
    slices = max(1, min(shape.B, _ceil(16 * multiprocessors, columns * tiles)))
    slices = _ceil(shape.B, _ceil(shape.B, slices)) if shape.B else 1  # no slice is empty
    return Launch(f"backward_vq_{SHORT[dtype]}_{_suffix(aligned)}", (columns, tiles, slices), threads), slices


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
