"""Builds and runs the CUDA source on the emulator, from NumPy arrays."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sdpl.kernels import EPS
from sdpl.kernels.arrays import narrow
from sdpl.kernels.compile import DTYPES
from sdpl.kernels.compile import source as of_package
from sdpl.kernels.plan import Launch, Shape, plan_backward_u, plan_backward_vq, plan_tiled

HERE = Path(__file__).parent
MULTIPROCESSORS = 4  # of an imagined small GPU: small shapes then reach every tile size


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Values as the kernel sees them, in float64."""
    bits = narrow(x, dtype)
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.astype(np.float64)


def build(folder: Path, dtype: str, source: str | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernel source (or a changed copy of it) with the emulator for one dtype; returns the program."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    path = folder / f"{'kernels' if source is None else 'changed'}.cu"
    path.write_text(source or of_package())
    program = folder / f"emulate-{dtype}"
    defines = (f"-DSDPL_DTYPE={DTYPES[dtype]}", f'-DSDPL_SOURCE="{path}"')
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-Wno-unknown-pragmas",
        *defines,
        *flags,
        str(HERE / "emulate.cpp"),
        "-o",
        str(program),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:2000]
    return program


class Emulated:
    """The kernels of one program, called with NumPy arrays; launched as `sdpl.kernels.launch` plans it."""

    def __init__(self, program: Path, dtype: str):
        self.program, self.dtype = program, dtype

    def forward(self, u, v, q, g, t, aligned=True, multiprocessors=MULTIPROCESSORS):
        shape = Shape(*u.shape[:2], len(v), len(q), g.shape[-1])
        whole = aligned and shape.K % 8 == 0 and shape.E % 4 == 0 and shape.L >= 7
        plan = plan_tiled("forward", shape, self.dtype, whole, multiprocessors)
        return self.launch_forward(plan, u, v, q, g, t)

    def launch_forward(self, plan, u, v, q, g, t):
        """logits [B,C] and attention [B,C,L] of one launch."""
        shape = Shape(*u.shape[:2], len(v), len(q), g.shape[-1])
        arrays = (self._bits(u), self._bits(v), _f32(q), self._bits(g), _f32(t))
        return self._run(plan, shape, arrays, [(shape.B, shape.C), (shape.B, shape.C, shape.L)])

    def scores(self, u, v, q, aligned=True):
        shape = Shape(*u.shape[:2], len(v), len(q))
        plan = plan_tiled("scores", shape, self.dtype, aligned and shape.K % 8 == 0 and shape.L >= 7, MULTIPROCESSORS)
        return self._run(plan, shape, self._uvq(u, v, q), [(shape.B, shape.C, shape.L)])[0]

    def backward(self, u, v, q, ds, aligned=True):
        """du [B,L,K], dv [C,K], dq [K]."""
        aligned = aligned and len(q) % 8 == 0
        shape = Shape(*u.shape[:2], len(v), len(q))
        arrays = (*self._uvq(u, v, q), _f32(ds))
        (du,) = self._run(plan_backward_u(shape, self.dtype, aligned), shape, arrays, [u.shape])
        plan, slices = plan_backward_vq(shape, self.dtype, aligned, MULTIPROCESSORS)
        results = [(slices, shape.C, shape.K), (slices, plan.grid[1], shape.K)]
        dv, dq = self._run(plan, shape, arrays, results, slices)
        return du, dv.sum(0), dq.sum((0, 1))

    def _uvq(self, u, v, q):
        return self._bits(u), self._bits(v), _f32(q)

    def _bits(self, x):
        return narrow(x, self.dtype)

    def _run(self, plan: Launch, shape: Shape, arrays, results, slices=0) -> list[np.ndarray]:
        numbers = (
            *plan.grid,
            plan.block,
            plan.shared_bytes,
            shape.B,
            shape.L,
            shape.C,
            shape.K,
            shape.E,
            *(plan.tiling or (slices, 0)),
            EPS,
        )
        command = [str(self.program), plan.entry, *map(str, numbers)]
        process = subprocess.run(command, input=b"".join(a.tobytes() for a in arrays), capture_output=True)
        if process.returncode != 0:
            raise EmulatorError(process.stderr.decode(errors="replace")[:2000])
        flat = np.frombuffer(process.stdout, dtype=np.float32)
        sizes = [int(np.prod(shape)) for shape in results]
        assert flat.size == sum(sizes)
        return [part.reshape(s) for part, s in zip(np.split(flat, np.cumsum(sizes)[:-1]), results, strict=True)]


class EmulatorError(Exception):
    """The program stopped: a thread left before a barrier, or the sanitizer found something."""


def _f32(x):
    return np.ascontiguousarray(x, dtype=np.float32)
