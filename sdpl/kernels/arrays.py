"""Arrays on a GPU as the kernels take them: address, shape, dtype; of any library that shares its memory."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdpl.kernels.compile import constants
from sdpl.kernels.plan import Shape

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TYPESTR = {"<f4": "float32", "<f2": "float16", "<V2": "bfloat16"}  # the last as PyTorch and ml_dtypes name it


@dataclass(frozen=True)
class DeviceArray:
    """Memory on a GPU: address, shape, dtype by name. C-contiguous."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Any, name: str, filled: bool = False) -> "DeviceArray":
        """A view of anything with `__cuda_array_interface__`. filled: whether a kernel writes to it. Raises ValueError
        saying what was expected."""
        if isinstance(array, cls):
            return array
        try:
            interface = getattr(array, "__cuda_array_interface__", None)
        except RuntimeError as error:  # PyTorch's, for a tensor that requires a gradient
            raise ValueError(f"{name}: {error}") from None
        if interface is None:
            raise ValueError(f"{name}: expected an array on a CUDA device, got {type(array).__name__}")
        dtype = TYPESTR.get(interface["typestr"])
        if dtype is None:
            raise ValueError(f"{name}: expected float32, float16 or bfloat16, got type {interface['typestr']}")
        shape, strides = tuple(interface["shape"]), interface.get("strides")
        if not is_contiguous(shape, strides, BYTES[dtype]):
            raise ValueError(f"{name}: expected a C-contiguous array, got strides {tuple(strides)} for shape {shape}")
        pointer, read_only = interface["data"]
        if pointer % BYTES[dtype]:  # an access there would end the whole context
            raise ValueError(f"{name}: expected an address that is a multiple of {BYTES[dtype]}, got {pointer:#x}")
        if filled and read_only:
            raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
        if interface.get("mask") is not None:
            raise ValueError(f"{name}: expected an array without a mask")
        return cls(int(pointer), shape, dtype)


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
    """Whether rows can be read in whole words: of K in 16 bytes, of E in four values, where there is an E. And whether
    there are as many locations as the kernels take in a step."""
    whole = (
        constants()["TILE_L"] <= shape.L
        and shape.K % constants()["LANE_K"] == 0
        and shape.E % constants()["POOL_E"] == 0
    )
    return whole and all(array.pointer % 16 == 0 for array in arrays)


class CudaArray(Protocol):
    """An array of any library that shares its memory."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


OnDevice = CudaArray | DeviceArray


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    """Whether strides in bytes, None by the protocol where they go without saying, leave no gaps (C order)."""
    return strides is None or tuple(strides) == tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
