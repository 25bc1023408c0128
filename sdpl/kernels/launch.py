"""Launching the kernels through the driver API: checks of the arrays, the plan of a shape, and the launch itself.
`pycuda_launch.py` launches the same cubins from PyCUDA.

Device arrays are anything with `__cuda_array_interface__` (PyTorch, CuPy, PyCUDA, Numba), or a `DeviceArray`.
"""

import ctypes
from typing import Any

import numpy as np

from sdpl.errors import UserError, listed
from sdpl.kernels import EPS
from sdpl.kernels.arrays import DeviceArray, OnDevice, check, is_aligned
from sdpl.kernels.compile import CAPABILITIES, covering, cubin
from sdpl.kernels.driver import Context, DriverError, call, context, require_here, version
from sdpl.kernels.plan import Launch, Shape, plan_backward_u, plan_backward_vq, plan_tiled

C_TYPES: dict[type, type] = {int: ctypes.c_void_p, np.int32: ctypes.c_int, np.float32: ctypes.c_float}


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
        t [C,E]; u, v, g of this object's dtype, q and t float32. Whoever makes the arrays does so on the same stream,
        or has waited. Raises ValueError for an array that does not fit, or lies elsewhere than on this GPU."""
        u, v, q, g, t = (self._view(a, n) for n, a in zip(("u", "v", "q", "g", "t"), (u, v, q, g, t), strict=True))
        logits = self._view(logits, "logits", filled=True)
        shape = self._shape(u, v, q, g)
        check("t", t, (shape.C, shape.E), "float32")
        check("logits", logits, (shape.B, shape.C), "float32")
        attention_pointer = 0
        if attention is not None:
            attention = self._view(attention, "attention", filled=True)
            check("attention", attention, (shape.B, shape.C, shape.L), "float32")
            attention_pointer = attention.pointer
        plan = plan_tiled("forward", shape, self.dtype, is_aligned(shape, u, v, q, g, t), self.multiprocessors)
        pointers = (u.pointer, v.pointer, q.pointer, g.pointer, t.pointer, logits.pointer, attention_pointer)
        sizes = (shape.B, shape.L, shape.C, shape.K, shape.E, *plan.tiling)
        self._launch(plan, stream, *pointers, *_ints(*sizes), _float(eps))

    def scores(self, u: DeviceArray, v: DeviceArray, q: DeviceArray, s: DeviceArray, stream: Any = None) -> None:
        """Fill s [B,C,L] (float32), for training."""
        shape = self._shape(u, v, q)
        check("s", s, (shape.B, shape.C, shape.L), "float32")
        plan = plan_tiled("scores", shape, self.dtype, is_aligned(shape, u, v, q), self.multiprocessors)
        sizes = (shape.B, shape.L, shape.C, shape.K, *plan.tiling)
        self._launch(plan, stream, u.pointer, v.pointer, q.pointer, s.pointer, *_ints(*sizes))

    def backward_u(
        self, u: DeviceArray, v: DeviceArray, q: DeviceArray, ds: DeviceArray, du: DeviceArray, stream: Any = None
    ) -> None:
        """Fill du [B,L,K] (float32) from the scores' gradient ds [B,C,L]."""
        shape = self._shape(u, v, q)
        check("ds", ds, (shape.B, shape.C, shape.L), "float32")
        check("du", du, u.shape, "float32")
        plan = plan_backward_u(shape, self.dtype, is_aligned(shape, u, v, q))
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
        plan, slices = plan_backward_vq(shape, self.dtype, is_aligned(shape, u, v, q), self.multiprocessors)
        check("dv", dv, (slices, shape.C, shape.K), "float32")
        check("dq", dq, (slices, plan.grid[1], shape.K), "float32")
        pointers = (u.pointer, v.pointer, q.pointer, ds.pointer, dv.pointer, dq.pointer)
        sizes = (shape.B, shape.L, shape.C, shape.K, -(-shape.B // slices))
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
            if embed < 1:
                raise ValueError(f"g: expected E >= 1, got {list(g.shape)}")
        return Shape(batch, locations, v.shape[0], joint, embed)

    def _view(self, array: OnDevice, name: str, filled: bool = False) -> DeviceArray:
        """An array's memory. A `DeviceArray` is taken as it is: this project makes it."""
        if isinstance(array, DeviceArray):
            return array
        view = DeviceArray.of(array, name, filled)
        if 0 not in view.shape:  # an empty array has no address
            self._require_here(view.pointer, name)
        return view

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

    def _require_here(self, pointer: int, name: str) -> None:
        """Raise ValueError unless an address is memory of this GPU."""
        with self._context.current():
            require_here(pointer, name)

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
            raise unloadable(where.capability, error) from None


def unloadable(capability: str, error: Exception) -> UserError:
    """What to say of a cubin that the driver refused."""
    return UserError(
        f"the driver ({version()}) cannot load the kernel for compute capability {capability} "
        f"({str(error).rstrip(' -')}): update the driver (CUDA 13 needs 580 or later), or export again."
    )


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
    if not hasattr(stream, "__cuda_stream__"):
        raise ValueError(
            f"stream: expected an address, an object with __cuda_stream__, or None, got {type(stream).__name__}"
        )
    return int(stream.__cuda_stream__()[1])


def _ints(*values: int) -> tuple[np.int32, ...]:
    """As C ints: a plain Python int is an address."""
    return tuple(np.int32(value) for value in values)


def _float(value: float) -> np.float32:
    return np.float32(value)
