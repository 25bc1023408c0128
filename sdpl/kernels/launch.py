"""Launching the kernels: which entry point and grid a shape takes, and the launch itself through the driver API.
`pycuda_launch.py` launches the same cubins from PyCUDA.

Device arrays are anything with `__cuda_array_interface__` (PyTorch, CuPy, PyCUDA, Numba), or a `DeviceArray`.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdpl.errors import UserError, listed
from sdpl.kernels import EPS
from sdpl.kernels.compile import CAPABILITIES, constants, covering, cubin
from sdpl.kernels.driver import Context, DriverError, call, context, version

MAX_LOCATIONS = 1024
MAX_GRID_YZ = 65535  # CUDA's limit for the second and third dimension of a grid
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TYPESTR = {"<f4": "float32", "<f2": "float16"}
C_TYPES: dict[type, type] = {int: ctypes.c_void_p, np.int32: ctypes.c_int, np.float32: ctypes.c_float}


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
    """How to launch "forward" or "scores". aligned: rows of K are whole 16-byte words at 16-byte addresses.

    A block takes more categories when there are enough blocks for two on every multiprocessor anyway: each loaded
    u then serves more products. One image with few categories takes one category per block, to fill the GPU.
    """
    threads = constants()["FORWARD_THREADS"]
    tiles = [1] if not aligned else [2, 1] if dtype == "float32" else [4, 2, 1]
    enough = [tc for tc in tiles if shape.B * _ceil(shape.C, tc) >= 2 * multiprocessors]
    tc = enough[0] if enough else 1
    suffix = "aligned" if aligned else "any"
    shared = 4 * tc * (shape.L + 2 * threads // constants()["WARP"]) if kernel == "forward" else 0
    return Launch(f"{kernel}_{SHORT[dtype]}_c{tc}_{suffix}", (_ceil(shape.C, tc), shape.B, 1), threads, shared)


def plan_backward_u(shape: Shape, dtype: str) -> Launch:
    """How to launch the backward kernel for u."""
    threads = constants()["BACKWARD_THREADS"]
    columns = _ceil(shape.K, threads * constants()["BACKWARD_K"])
    grid = (columns, _ceil(shape.L, constants()["TILE_L"]), shape.B)
    return Launch(f"backward_u_{SHORT[dtype]}", grid, threads)


def plan_backward_vq(shape: Shape, dtype: str, multiprocessors: int) -> tuple[Launch, int]:
    """How to launch the backward kernel for v and q, and into how many slices it cuts the batch.

    The slices fill the GPU when there are few categories; their sums are added in order afterwards.
    """
    threads = constants()["BACKWARD_THREADS"]
    columns = _ceil(shape.K, threads * constants()["BACKWARD_K"])
    tiles = _ceil(shape.C, constants()["BACKWARD_TC"])
    if tiles > MAX_GRID_YZ:
        raise ValueError(f"C: expected at most {MAX_GRID_YZ * constants()['BACKWARD_TC']} categories, got {shape.C}")
    slices = max(1, min(shape.B, _ceil(16 * multiprocessors, columns * tiles)))
    slices = _ceil(shape.B, _ceil(shape.B, slices)) if shape.B else 1  # no slice is empty
    return Launch(f"backward_vq_{SHORT[dtype]}", (columns, tiles, slices), threads), slices


@dataclass(frozen=True)
class DeviceArray:
    """Memory on a GPU: address, shape, dtype by name. C-contiguous."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Any, name: str) -> "DeviceArray":
        """A view of anything with `__cuda_array_interface__`. Raises ValueError saying what was expected."""
        if isinstance(array, cls):
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise ValueError(f"{name}: expected an array on a CUDA device, got {type(array).__name__}")
        dtype = TYPESTR.get(interface["typestr"])
        if dtype is None:
            raise ValueError(f"{name}: expected float32 or float16, got type {interface['typestr']}")
        shape = tuple(interface["shape"])
        strides = interface.get("strides")
        if strides is not None and tuple(strides) != _contiguous_strides(shape, BYTES[dtype]):
            raise ValueError(f"{name}: expected a C-contiguous array, got strides {tuple(strides)} for shape {shape}")
        return cls(interface["data"][0], shape, dtype)


def check(name: str, array: DeviceArray, shape: tuple[int, ...], dtype: str) -> None:
    """Raise ValueError unless an array has this shape and dtype."""
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    """Values rounded to a dtype, in memory as the kernels read them; bfloat16, which NumPy lacks, as its bits."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return x.astype(dtype)


def is_aligned(shape: Shape, *arrays: DeviceArray) -> bool:
    """Whether rows of K can be read in whole 16-byte words."""
    return shape.K % constants()["LANE_K"] == 0 and all(array.pointer % 16 == 0 for array in arrays)


class CudaArray(Protocol):
    """An array of any library that shares its memory."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


OnDevice = CudaArray | DeviceArray


class Kernels:
    """The kernels for one dtype on one GPU, loaded from a cubin. Methods enqueue on a stream and return at once; they
    may be called from any thread. `close` unloads the code, once nothing runs any more.

    stream: an address (cudaStream_t), an object with `__cuda_stream__`, or None for the default stream.
    """

    def __init__(self, dtype: str, code: bytes | None = None, device_id: int = 0):
        """code: a cubin for this GPU; None compiles one. Raises UserError when there is none and no NVRTC, and when
        the driver cannot load it."""
        self.dtype = dtype
        self._functions: dict[str, Any] = {}
        self.multiprocessors, self._module = self._load(code, device_id)

    def forward(
        self,
        u: OnDevice,
        v: OnDevice,
        q: OnDevice,
        g: OnDevice,
        t: OnDevice,
        logits: OnDevice,
        attention: OnDevice | None = None,
        stream: Any = None,
        eps: float = EPS,
    ) -> None:
        """Fill logits [B,C] and, if given, attention [B,C,L] (float32) from u [B,L,K], v [C,K], q [K], g [B,L,E],
        t [C,E]; u, v, g of this object's dtype, q and t float32."""
        u, v, q, g, t, logits = (
            DeviceArray.of(a, n)
            for n, a in zip(("u", "v", "q", "g", "t", "logits"), (u, v, q, g, t, logits), strict=True)
        )
        shape = self._shape(u, v, q, g)
        check("t", t, (shape.C, shape.E), "float32")
        check("logits", logits, (shape.B, shape.C), "float32")
        attention_pointer = 0
        if attention is not None:
            attention = DeviceArray.of(attention, "attention")
            check("attention", attention, (shape.B, shape.C, shape.L), "float32")
            attention_pointer = attention.pointer
        plan = plan_tiled("forward", shape, self.dtype, is_aligned(shape, u, v, q), self.multiprocessors)
        pointers = (u.pointer, v.pointer, q.pointer, g.pointer, t.pointer, logits.pointer, attention_pointer)
        self._launch(plan, stream, *pointers, *_ints(shape.L, shape.C, shape.K, shape.E), _float(eps))

    def scores(self, u: DeviceArray, v: DeviceArray, q: DeviceArray, s: DeviceArray, stream: Any = None) -> None:
        """Fill s [B,C,L] (float32), for training."""
        shape = self._shape(u, v, q)
        check("s", s, (shape.B, shape.C, shape.L), "float32")
        plan = plan_tiled("scores", shape, self.dtype, is_aligned(shape, u, v, q), self.multiprocessors)
        self._launch(plan, stream, u.pointer, v.pointer, q.pointer, s.pointer, *_ints(shape.L, shape.C, shape.K))

    def backward_u(
        self, u: DeviceArray, v: DeviceArray, q: DeviceArray, ds: DeviceArray, du: DeviceArray, stream: Any = None
    ) -> None:
        """Fill du [B,L,K] (float32) from the scores' gradient ds [B,C,L]."""
        shape = self._shape(u, v, q)
        check("ds", ds, (shape.B, shape.C, shape.L), "float32")
        check("du", du, u.shape, "float32")
        plan = plan_backward_u(shape, self.dtype)
        pointers = (u.pointer, v.pointer, q.pointer, ds.pointer, du.pointer)
        self._launch(plan, stream, *pointers, *_ints(shape.L, shape.C, shape.K))

    def backward_vq(
        self,
        u: DeviceArray,
        v: DeviceArray,
        q: DeviceArray,
        ds: DeviceArray,
        dv: DeviceArray,
        dq: DeviceArray,
        stream: Any = None,
    ) -> None:
        """Fill the slices dv [slices,C,K] and dq [slices,tiles,K] (float32); see `plan_backward_vq`."""
        shape = self._shape(u, v, q)
        check("ds", ds, (shape.B, shape.C, shape.L), "float32")
        plan, slices = plan_backward_vq(shape, self.dtype, self.multiprocessors)
        check("dv", dv, (slices, shape.C, shape.K), "float32")
        check("dq", dq, (slices, plan.grid[1], shape.K), "float32")
        pointers = (u.pointer, v.pointer, q.pointer, ds.pointer, dv.pointer, dq.pointer)
        sizes = (shape.B, shape.L, shape.C, shape.K, _ceil(shape.B, slices))
        self._launch(plan, stream, *pointers, *_ints(*sizes))

    def _shape(self, u: DeviceArray, v: DeviceArray, q: DeviceArray, g: DeviceArray | None = None) -> Shape:
        if len(u.shape) != 3 or len(v.shape) != 2:
            raise ValueError(f"expected u [B,L,K] and v [C,K], got {list(u.shape)} and {list(v.shape)}")
        batch, locations, joint = u.shape
        check("u", u, u.shape, self.dtype)
        check("v", v, (v.shape[0], joint), self.dtype)
        check("q", q, (joint,), "float32")
        embed = 0
        if g is not None:
            embed = g.shape[-1] if g.shape else 0
            check("g", g, (batch, locations, embed), self.dtype)
        return Shape(batch, locations, v.shape[0], joint, embed)

    def _launch(self, plan: Launch, stream: Any, *arguments: int | np.generic) -> None:
        if 0 in plan.grid:  # an empty batch
            return
        if plan.entry not in self._functions:
            self._functions[plan.entry] = self._function(plan.entry)
        self._enqueue(self._functions[plan.entry], plan, stream, arguments)

    # What a binding of the driver must do: these with cuda-python, in `pycuda_launch.py` with PyCUDA.

    def close(self) -> None:
        """Unload the code. The kernels cannot be used afterwards."""
        if self._module is not None:
            with self._context.current():
                call("cuModuleUnload", self._module)
            self._module = None
            self._functions.clear()

    def _load(self, code: bytes | None, device_id: int) -> tuple[int, Any]:
        """The number of multiprocessors, and the cubin as a loaded module."""
        self._context = context(device_id)
        module = load_module(self._context, code or cubin(supported(self._context.capability), self.dtype))
        return self._context.attribute("MULTIPROCESSOR_COUNT"), module

    def _function(self, entry: str) -> Any:
        if self._module is None:
            raise RuntimeError("these kernels are closed")
        with self._context.current():
            return call("cuModuleGetFunction", self._module, entry.encode())

    def _enqueue(self, function: Any, plan: Launch, stream: Any, arguments: tuple[int | np.generic, ...]) -> None:
        with self._context.current():  # the calling thread may have none, as PyTorch's backward thread
            launch(function, plan, _address(stream), arguments)


def supported(capability: str) -> str:
    """The compute capability to compile for, for a GPU of this one. Raises UserError when there is none."""
    built_for = covering(capability)
    if built_for is None:
        raise UserError(
            f"compute capability {capability}: kernels are built for {listed(CAPABILITIES, most=9)}, and for later "
            "minors of the same major."
        )
    return built_for


def load_module(where: Context, code: bytes) -> Any:
    """A cubin as a module of a GPU. Raises UserError when the driver will not have it."""
    with where.current():
        try:
            return call("cuModuleLoadData", code)
        except DriverError as error:
            raise UserError(
                f"the driver ({version()}) cannot load the kernel for compute capability {where.capability} ({error}): "
                "update the driver, or export again."
            ) from None


def launch(function: Any, plan: Launch, stream: int, arguments: tuple[int | np.generic, ...]) -> None:
    """Enqueue a kernel in the current context. An int is an address; NumPy's numbers are passed as what they are."""
    values = tuple(argument.item() if isinstance(argument, np.generic) else argument for argument in arguments)
    types = tuple(C_TYPES[type(argument)] for argument in arguments)
    shape = (*plan.grid, plan.block, 1, 1, plan.shared_bytes)
    call("cuLaunchKernel", function, *shape, stream, (values, types), 0)


def _address(stream: Any) -> int:
    """A stream's address; 0 is the default stream."""
    if stream is None or isinstance(stream, int):
        return stream or 0
    return int(stream.__cuda_stream__()[1])


def _ints(*values: int) -> tuple[np.int32, ...]:
    """As C ints: a plain Python int is an address."""
    return tuple(np.int32(value) for value in values)


def _float(value: float) -> np.float32:
    return np.float32(value)


def _contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
