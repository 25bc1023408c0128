"""The second stage on a GPU: the operator's constants, and the fused kernel that turns u and g into logits; or nothing,
where the engine is the whole model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdpl.kernels.arrays import BYTES, DeviceArray, narrow
from sdpl.kernels.launch import Kernels
from sdpl.runtime.device import Cuda


@dataclass(frozen=True)
class Sizes:
    """S image side, L locations, C categories, K joint dimension, E embedding dimension."""

    S: int
    L: int
    C: int
    K: int
    E: int

    @property
    def image(self) -> int:
        """Bytes of one image."""
        return self.S * self.S * 3

    def bytes(self, dtype: str | None) -> dict[str, int]:
        """Of one image's row in each buffer; dtype: of u and g, None where they are the engine's own."""
        between = {} if dtype is None else {"u": self.L * self.K * BYTES[dtype], "g": self.L * self.E * BYTES[dtype]}
        return {"image": self.image, **between, "logits": self.C * 4, "attention": self.C * self.L * 4}


class NoHead:
    """For an engine of the whole model, which writes scores and attention itself."""

    outputs = ("logits", "attention")  # the buffers that the engine writes; its scores are where logits would be

    def enqueue(self, batch: int, at: Mapping[str, int], with_attention: bool, stream: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class GpuHead:
    """Owns its kernels. Calls need the GPU's context."""

    outputs = ("u", "g")

    def __init__(self, constants: Mapping[str, np.ndarray], sizes: Sizes, kernels: Kernels, device: Cuda, stream: int):
        """constants: v [C,K], q [K], t [C,E], float32; uploaded on the stream. Raises OutOfMemoryError; nothing of it
        is then left on the GPU."""
        self._sizes, self._kernels, self._device = sizes, kernels, device
        self._constants: dict[str, int] = {}
        try:
            for name, array in (
                ("v", narrow(constants["v"], kernels.dtype)),
                ("q", constants["q"]),
                ("t", constants["t"]),
            ):
                self._constants[name] = self._upload(array, stream)
        except BaseException:  # whatever it was, nothing stays on the GPU
            self.close()
            raise

    @property
    def dtype(self) -> str:
        return self._kernels.dtype

    def enqueue(self, batch: int, at: Mapping[str, int], with_attention: bool, stream: int) -> None:
        """Logits, and attention if it is asked for, from u and g; at: the addresses of all four by name."""
        s, dtype = self._sizes, self.dtype
        attention = DeviceArray(at["attention"], (batch, s.C, s.L), "float32") if with_attention else None
        self._kernels.forward(
            DeviceArray(at["u"], (batch, s.L, s.K), dtype),
            DeviceArray(self._constants["v"], (s.C, s.K), dtype),
            DeviceArray(self._constants["q"], (s.K,), "float32"),
            DeviceArray(at["g"], (batch, s.L, s.E), dtype),
            DeviceArray(self._constants["t"], (s.C, s.E), "float32"),
            DeviceArray(at["logits"], (batch, s.C), "float32"),
            attention,
            stream=stream,
        )

    def close(self) -> None:
        """Free everything, once nothing runs. Safe to call twice."""
        for pointer in self._constants.values():
            self._device.free(pointer)
        self._constants.clear()
        self._kernels.close()

    def _upload(self, array: np.ndarray, stream: int) -> int:
        pinned = self._device.allocate_pinned(array.nbytes)
        try:
            pointer = self._device.allocate(array.nbytes)
            try:
                pinned.array[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                self._device.copy(pointer, pinned.pointer, array.nbytes, stream)
                self._device.synchronize(stream)
            except BaseException:
                self._device.free(pointer)
                raise
        finally:
            self._device.free_pinned(pinned)
        return pointer


Head = GpuHead | NoHead
