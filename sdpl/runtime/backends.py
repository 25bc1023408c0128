"""Engines that run a bundle's target: arrays in, arrays out."""

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdpl.bundle import Bundle, Target
from sdpl.errors import UserError, listed, nearest
from sdpl.kernels.compile import OF_PRECISION
from sdpl.runtime.usable import BACKENDS, in_order, rebuild, target_obstacle


class Backend(Protocol):
    """Runs one target. Thread-safe."""

    def scores(self, images: np.ndarray) -> np.ndarray:
        """float32 [B,C] from uint8 [B,S,S,3]."""

    def attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """scores float32 [B,C] and attention float32 [B,C,L] from uint8 [B,S,S,3]."""

    def describe(self) -> dict[str, str]:
        """Library, version, provider and threads, for reports."""

    def close(self) -> None:
        """Free everything. The backend cannot be used afterwards."""


class OnnxRuntimeCpu:
    """A whole model on ONNX Runtime's CPU provider."""

    def __init__(self, bundle: Bundle, target: Target, threads: int | None = None):
        """threads: cores used inside one call; None for all physical cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        path = bundle.file(target.files["model"])
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
            "backend": "onnxruntime-cpu",
            "library": f"onnxruntime {onnxruntime.__version__}",
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


@dataclass(frozen=True)
class Choice:
    """A target that was opened, and why others that would have come first were not."""

    target: str
    backend: Backend
    passed_over: dict[str, str]


def open_backend(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Choice:
    """Open a bundle's target: of that name ("cpu:int8"), of that backend ("tensorrt-rtx"), or with "auto" the fastest
    that this machine can run.

    Raises UserError that says, for each target that was asked for, why it cannot run here.
    """
    targets = bundle.manifest.targets
    if name not in ("auto", *targets, *BACKENDS):
        raise UserError(f"backend {name!r}: {nearest(name, ['auto', *BACKENDS, *targets])}")
    asked = [n for n in in_order(targets) if name in ("auto", n, targets[n].backend)]
    passed_over: dict[str, str] = {}
    for candidate in asked:
        obstacle = target_obstacle(bundle, candidate)
        if obstacle is None:
            return Choice(candidate, _open(bundle, candidate, threads), passed_over)
        passed_over[candidate] = obstacle
    if not asked:
        raise UserError(f"{bundle.path} has no target for {name}: sdpl-export makes one (it has {listed(targets)}).")
    why = "; ".join(f"{target}: {obstacle}" for target, obstacle in passed_over.items())
    raise UserError(f"{bundle.path}: nothing of it runs here. {why}")


def _open(bundle: Bundle, name: str, threads: int | None) -> Backend:
    target = bundle.manifest.targets[name]
    if target.backend == "onnxruntime-cpu":
        return OnnxRuntimeCpu(bundle, target, threads)
    from sdpl.kernels.launch import Kernels, find_gpu
    from sdpl.runtime.device import Cuda
    from sdpl.runtime.encoders import ENCODERS
    from sdpl.runtime.two_stage import TwoStage

    device, gpu = Cuda(), find_gpu()
    cubin = target.files.get(f"cubin.sm{gpu.capability}")
    kernels = Kernels(OF_PRECISION[target.precision], bundle.file(cubin).read_bytes() if cubin else None)
    if not cubin:
        warnings.warn(
            f"{bundle.path} has no kernel for compute capability {gpu.capability}: it was compiled now. "
            f"{rebuild(bundle, name, gpu)} puts it into the bundle.",
            stacklevel=2,
        )
    encoder = ENCODERS[target.backend](bundle, name, target, device)
    return TwoStage(target.backend, bundle, target, encoder, kernels, device)
