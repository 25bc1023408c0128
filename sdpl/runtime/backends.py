"""Engines that run a bundle's target: arrays in, arrays out."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdpl.bundle import Bundle, Target
from sdpl.errors import UserError, listed, nearest
from sdpl.kernels.compile import covering
from sdpl.kernels.gpu import require_gpu
from sdpl.runtime.availability import in_order, target_obstacle
from sdpl.targets import BACKENDS, PRECISIONS

BATCH_SIZES = (1, 2, 4, 8, 16)  # of a CPU: more gain nothing, and take memory


class Backend(Protocol):
    """Runs one target. Thread-safe."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Batch sizes that run well, smallest first; others run too."""

    @property
    def largest_on_device(self) -> int:
        """The largest batch that `on_device` takes; 0 where images are not on a device of its own."""

    def on_device(self, images: np.ndarray) -> Callable[[], object]:
        """A call that runs uint8 [B,S,S,3], already on the device, and waits for it; for measuring."""

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

    @property
    def batch_sizes(self) -> Sequence[int]:
        return BATCH_SIZES

    @property
    def largest_on_device(self) -> int:
        return 0

    def on_device(self, images: np.ndarray) -> Callable[[], object]:
        raise ValueError("a CPU has no memory of its own to measure from")

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
        results: list[np.ndarray] = self._session.run(outputs, {"image": images})
        return results


@dataclass(frozen=True)
class Choice:
    """A target that was opened, and why others that would have come first were not."""

    target: str
    backend: Backend
    skipped: dict[str, str]


def open_backend(bundle: Bundle, name: str = "auto", threads: int | None = None, device: int = 0) -> Choice:
    """Open a bundle's target: of that name ("cpu:int8"), of that backend ("tensorrt-rtx"), or with "auto" the fastest
    that this machine can run. device: the number of the GPU, for targets that run on one.

    Raises UserError that says, for each target that was asked for, why it cannot run here.
    """
    targets = bundle.manifest.targets
    if name not in ("auto", *targets, *BACKENDS):
        raise UserError(f"backend {name!r}: {nearest(name, ['auto', *BACKENDS, *targets])}")
    asked = [n for n in in_order(targets) if name in ("auto", n, targets[n].backend)]
    skipped: dict[str, str] = {}
    for candidate in asked:
        obstacle = target_obstacle(bundle, candidate, device)
        if obstacle is None:
            try:
                return Choice(candidate, _open(bundle, candidate, threads, device), skipped)
            except UserError as error:  # what only opening it can tell
                if len(asked) == 1:
                    raise
                obstacle = str(error)
        skipped[candidate] = obstacle
    if not asked:
        raise UserError(f"{bundle.path} has no target for {name}: sdpl-export makes one (it has {listed(targets)}).")
    why = "; ".join(f"{target}: {obstacle}" for target, obstacle in skipped.items())
    raise UserError(f"{bundle.path}: nothing of it runs here. {why}")


def _open(bundle: Bundle, name: str, threads: int | None, device_id: int) -> Backend:
    target = bundle.manifest.targets[name]
    if target.backend == "onnxruntime-cpu":
        return OnnxRuntimeCpu(bundle, target, threads)
    from sdpl.kernels.launch import Kernels
    from sdpl.runtime.device import Cuda
    from sdpl.runtime.engines import ENCODERS
    from sdpl.runtime.two_stage import TwoStage

    device, capability = Cuda(device_id), require_gpu(device_id).capability
    built_for = covering(capability, (role[8:] for role in target.files if role.startswith("cubin.sm")))
    cubin = bundle.file(target.files[f"cubin.sm{built_for}"]).read_bytes() if built_for else None
    kernels = Kernels(PRECISIONS[target.precision].kernel_dtype, cubin, device_id)
    if cubin is None:
        warnings.warn(
            f"{bundle.path} has no kernel for compute capability {capability}: it was compiled now, and is kept in "
            "the user's cache.",
            stacklevel=2,
        )
    try:
        encoder = ENCODERS[target.backend](bundle, name, target, device)
        try:
            return TwoStage(target.backend, bundle, target, encoder, kernels, device)
        except BaseException:
            encoder.close()
            raise
    except BaseException:
        kernels.close()
        raise
