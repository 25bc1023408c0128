"""Engines that run a bundle's target: arrays in, arrays out."""

import math
from typing import Protocol

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError, nearest


class Backend(Protocol):
    """Runs one target. Thread-safe."""

    name: str

    def scores(self, images: np.ndarray) -> np.ndarray:
        """float32 [B,C] from uint8 [B,S,S,3]."""

    def attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """scores float32 [B,C] and attention float32 [B,C,L] from uint8 [B,S,S,3]."""

    def describe(self) -> dict[str, str]:
        """Library, version, provider and threads, for reports."""

    def close(self) -> None:
        """Free everything. The backend cannot be used afterwards."""


class OnnxRuntimeCpu:
    """The target `cpu:fp32` on ONNX Runtime's CPU provider."""

    name = "onnxruntime-cpu"
    target = "cpu:fp32"

    def __init__(self, bundle: Bundle, threads: int | None = None):
        """threads: cores used inside one call; None for all physical cores."""
        try:
            import onnxruntime
        except ImportError:
            raise UserError('onnxruntime is not installed: pip install "sdpl[runtime]"') from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        path = bundle.file(bundle.manifest.targets[self.target].file)
        state = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()  # its errors share no base class
        failures = tuple(e for e in state if isinstance(e, type) and issubclass(e, Exception))
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except failures as error:
            raise UserError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]}).") from None
        manifest = bundle.manifest
        expected = [manifest.preprocessing.image_size, len(manifest.categories), math.prod(manifest.map_size)]
        (image,), (scores, attention) = self._session.get_inputs(), self._session.get_outputs()
        if [image.shape[1], scores.shape[1], attention.shape[2]] != expected:
            raise UserError(
                f"{path}: does not fit its manifest (size, categories or map). Export the checkpoint again."
            )
        self._description = {
            "backend": self.name,
            "onnxruntime": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "threads": f"{threads} threads" if threads else "all cores",
        }

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self._run(["scores"], images)[0]

    def attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, attention = self._run(["scores", "attention"], images)
        return scores, attention

    def describe(self) -> dict[str, str]:
        return self._description

    def close(self) -> None:
        self._session = None

    def _run(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        if self._session is None:
            raise RuntimeError("this recognizer is closed")
        return self._session.run(outputs, {"image": images})


BACKENDS = {backend.name: backend for backend in (OnnxRuntimeCpu,)}


def open_backend(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Backend:
    """The named backend, or with "auto" the first in the order of `BACKENDS` whose target the bundle has."""
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"backend {name!r}: {nearest(name, ['auto', *BACKENDS])}")
    for backend in BACKENDS.values() if name == "auto" else (BACKENDS[name],):
        if backend.target in bundle.manifest.targets:
            return backend(bundle, threads)
    have = ", ".join(bundle.manifest.targets)
    raise UserError(f"{bundle.path}: no backend here runs its targets ({have}): export it again for this machine.")
