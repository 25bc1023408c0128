"""The second stage on a GPU: the operator's constants, and the fused kernel that turns u and g into logits; or nothing,
where the engine is the whole model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdpl.kernels.arrays import BYTES, DeviceArray, narrow
from sdpl.kernels.launch import Kernels
from sdpl.runtime.device import Cuda

More = Literal["attention", "embedding"] | None  # what a call asks for beside the scores


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
        results = {"logits": self.C * 4, "attention": self.C * self.L * 4, "embedding": self.E * 4}
        return {"image": self.image, **between, **{name: size for name, size in results.items() if size}}


class NoHead:
    """For an engine of the whole model, which writes scores, attention and embedding itself.

    outputs: the buffers that the engine writes; its scores are where logits would be.
    """

    def __init__(self, with_embedding: bool):
        self.outputs = ("logits", "attention", "embedding") if with_embedding else ("logits", "attention")

    def enqueue(self, batch: int, at: Mapping[str, int], more: More, stream: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class GpuHead:
    """Owns its kernels. Calls need the GPU's context."""

    outputs = ("u", "g")

    def __init__(self, constants: Mapping[str, np.ndarray], sizes: Sizes, kernels: Kernels, device: Cuda, stream: int):
        """constants: v [C,K], q [K], t [C,E], float32; uploaded on the stream. Raises OutOfMemoryError; nothing of it
        is then left on the GPU.

        An embedding is the operator once more, with an attention that looks everywhere alike (`alike`, 0) and the axes
        for text features: two arrays [E,K] and [E,E] on the GPU, and no other kernel."""
        self._sizes, self._kernels, self._device = sizes, kernels, device
        self._constants: dict[str, int] = {}
        try:
            for name, array in (
                ("v", narrow(constants["v"], kernels.dtype)),
                ("q", constants["q"]),
                ("t", constants["t"]),
                ("alike", narrow(np.zeros((sizes.E, sizes.K), np.float32), kernels.dtype)),
                ("axes", np.eye(sizes.E, dtype=np.float32)),
            ):
                self._constants[name] = self._upload(array, stream)
        except BaseException:  # whatever it was, nothing stays on the GPU
            self.close()
            raise

    @property
    def dtype(self) -> str:
        return self._kernels.dtype

    def enqueue(self, batch: int, at: Mapping[str, int], more: More, stream: int) -> None:
        """Logits, and what else is asked for, from u and g; at: the addresses of all of them by name."""
        s, dtype = self._sizes, self.dtype
        u, g = DeviceArray(at["u"], (batch, s.L, s.K), dtype), DeviceArray(at["g"], (batch, s.L, s.E), dtype)
        q = DeviceArray(self._constants["q"], (s.K,), "float32")

        def pool(v: str, t: str, count: int, result: str, attention: DeviceArray | None = None) -> None:
            self._kernels.forward(
                u,
                DeviceArray(self._constants[v], (count, s.K), dtype),
                q,
                g,
                DeviceArray(self._constants[t], (count, s.E), "float32"),
                DeviceArray(at[result], (batch, count), "float32"),
                attention,
                stream=stream,
            )

        asked = DeviceArray(at["attention"], (batch, s.C, s.L), "float32") if more == "attention" else None
        pool("v", "t", s.C, "logits", asked)
        if more == "embedding":
            pool("alike", "axes", s.E, "embedding")

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
