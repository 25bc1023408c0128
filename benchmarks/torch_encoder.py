"""A PyTorch module as the first stage: where no engine can be installed, buckets, graphs and streams still meet a real
driver. For benchmarks and tests; products use engines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sdpl.kernels.driver import OutOfMemoryError


class PatchEncoder(nn.Module):
    """image uint8 [B,S,S,3] -> u [B,L,K], g [B,L,E] in the module's dtype: patches of P pixels and two layers. Random
    weights; as small as an encoder can be that still has convolution, normalisation and matrix products."""

    def __init__(self, side: int = 448, patch: int = 64, width: int = 2048, joint: int = 1024, embed: int = 512):
        super().__init__()
        self.side, self.locations, self.joint, self.embed = side, (side // patch) ** 2, joint, embed
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, joint + embed)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = image.permute(0, 3, 1, 2).to(self.out.weight.dtype) / 127.5 - 1  # [B,3,S,S]
        f = nn.functional.gelu(self.norm(self.patches(x).flatten(2).transpose(1, 2)))  # [B,L,D]
        u, g = self.out(f).split((self.joint, self.embed), dim=-1)
        return u, g


class Memory:
    """Memory at an address, for `torch.as_tensor`."""

    def __init__(self, pointer: int, shape: tuple[int, ...], typestr: str):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "strides": None, "data": (pointer, False), "version": 2,
        }  # fmt: skip


class TorchEncoder:
    """As `sdpl.runtime.two_stage.Encoder`: a module on a GPU that takes and gives what `PatchEncoder` does.

    Each stream and batch size has a memory pool of its own: a captured graph keeps using the addresses of its temporary
    tensors, so nobody else may get them.
    """

    def __init__(self, module: Any, device_id: int = 0):
        self.module, self.device = module.eval(), torch.device("cuda", device_id)
        self._typestr = {torch.float32: "<f4", torch.float16: "<f2"}[next(module.parameters()).dtype]
        self._pools: dict[tuple[int, int], Any] = {}

    def prepare(self, batch: int, stream: int) -> None:
        self._pools.setdefault((stream, batch), torch.cuda.MemPool())

    def forget(self, batch: int, stream: int) -> None:
        self._pools.pop((stream, batch), None)

    def leave(self, stream: int) -> None:
        for key in [key for key in self._pools if key[0] == stream]:
            del self._pools[key]

    def enqueue(self, batch: int, image: int, outputs: Sequence[int], stream: int) -> None:
        m = self.module
        try:
            with (
                torch.inference_mode(),
                torch.cuda.device(self.device),
                torch.cuda.stream(torch.cuda.ExternalStream(stream, self.device)),
                torch.cuda.use_mem_pool(self._pools[stream, batch]),
            ):
                results = m(self._tensor(image, (batch, m.side, m.side, 3), "|u1"))
                for pointer, result, size in zip(outputs, results, (m.joint, m.embed), strict=True):
                    self._tensor(pointer, (batch, m.locations, size), self._typestr).copy_(result)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"the GPU has too little free memory for batch {batch}: {error}") from None

    def capturable(self, stream: int) -> bool:
        return True

    def warmed(self) -> None:
        """Nothing: PyTorch compiled nothing that could be kept."""

    def describe(self) -> dict[str, str]:
        return {"library": f"torch {torch.__version__}"}

    def close(self) -> None:
        self._pools.clear()

    def _tensor(self, pointer: int, shape: tuple[int, ...], typestr: str) -> torch.Tensor:
        return torch.as_tensor(Memory(pointer, shape, typestr), device=self.device)
