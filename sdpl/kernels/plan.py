"""Which entry point and grid a shape takes. What follows from the kernels' own tile sizes is read from their source."""

from dataclasses import dataclass

from sdpl.kernels.compile import constants

MAX_LOCATIONS = 1024
MAX_COLUMNS = 1 << 20  # so that 32 bits are enough for the values of an image
MAX_PAIRS = 1 << 28  # so that 32 bits are enough for a few times as many
MAX_GRID_YZ = 65535  # CUDA's limit for the second and third dimension of a grid
MAX_SHARED_BYTES = 48 << 10  # of a block, without asking for more
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
        if max(self.K, self.E) > MAX_COLUMNS:
            raise ValueError(f"K and E: expected at most {MAX_COLUMNS}, got K={self.K}, E={self.E}")
        if min(self.C, self.K) < 1:
            raise ValueError(f"expected at least one category and K >= 1, got C={self.C}, K={self.K}")
        if self.B > MAX_GRID_YZ:
            raise ValueError(f"B: expected at most {MAX_GRID_YZ} images in one launch, got {self.B}")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: entry point, blocks, threads per block, dynamic shared memory in bytes.

    tiling: for "forward" and "scores" how many pairs of image and category each multiprocessor takes, and the most
    categories of a tile.
    """

    entry: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int = 0
    tiling: tuple[int, ...] = ()


def plan_tiled(kernel: str, shape: Shape, dtype: str, aligned: bool, multiprocessors: int) -> Launch:
    """How to launch "forward" or "scores". aligned: whether rows are whole words; see `arrays.is_aligned`.

    Each multiprocessor takes as many (image, category) pairs as every other, side by side, the last one what is left;
    its blocks share them out, and cut them into tiles of one image and up to 4 categories. There are as many blocks as
    give each a whole tile, at most FORWARD_BLOCKS.
    """
    most = _most_categories(kernel, shape.L, dtype, aligned)
    pairs = shape.B * shape.C
    if pairs > MAX_PAIRS:
        raise ValueError(f"B*C: expected at most {MAX_PAIRS} pairs of image and category in one launch, got {pairs}")
    each = max(1, _ceil(pairs, multiprocessors))
    grid = (_ceil(pairs, each), min(constants()["FORWARD_BLOCKS"], _ceil(each, most)), 1)
    entry = f"{kernel}_{SHORT[dtype]}_{_suffix(aligned)}"
    return Launch(entry, grid, constants()["FORWARD_THREADS"], _shared_bytes(kernel, most, shape.L), (each, most))


def _most_categories(kernel: str, locations: int, dtype: str, aligned: bool) -> int:
    """Of a tile: the most that the entry point has code for and whose shared memory a block may have."""
    compiled = 1 if not aligned else 2 if dtype == "float32" else 4
    fitting = (n for n in (4, 2) if n <= compiled and _shared_bytes(kernel, n, locations) <= MAX_SHARED_BYTES)
    return next(fitting, 1)


def _suffix(aligned: bool) -> str:
    return "aligned" if aligned else "any"


def _shared_bytes(kernel: str, most: int, locations: int) -> int:
    """Of a block with such tiles: partial scores, and for "forward" weights and sums; see the source."""
    size = constants()
    floats = size["FORWARD_WARPS"] * locations * most
    if kernel == "forward":
        floats += size["FORWARD_WARPS"] * (size["TILE_L"] + 3) * most
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
