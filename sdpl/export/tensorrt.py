"""An encoder's ONNX graph to an engine, with TensorRT-RTX (ahead of time, no GPU) or TensorRT (on the GPU at hand).

Both packages have one API. Their differences: TensorRT-RTX is told a compute capability and must not be asked for a
timing cache, which needs a GPU. Precision is the graph's: networks are strongly typed.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpl.errors import Stopped, UserError
from sdpl.kernels.gpu import find_gpu, gpu_obstacle, require_gpu
from sdpl.manifest import Profile
from sdpl.progress import Progress, Report, silent
from sdpl.runtime.availability import logger, package_obstacle
from sdpl.signals import STOPS
from sdpl.targets import TargetSpec

WORKSPACE_BYTES = 2 << 30


@dataclass(frozen=True)
class Engine:
    """A serialised engine and what it was built with."""

    code: bytes
    built_with: dict[str, str]
    compute_capability: str
    workspace_bytes: int


def require_buildable(spec: TargetSpec) -> None:
    """Raise UserError with the fix when this machine cannot build the target's engine."""
    if not spec.backend.builds_engines:
        return
    obstacle = package_obstacle(spec.backend)
    if obstacle is not None:
        raise UserError(f"--target {spec}: {obstacle}")
    if not spec.backend.capabilities and find_gpu() is None:
        raise UserError(f"--target {spec}: TensorRT builds on the GPU that will run the engine, and {gpu_obstacle()}.")


def build_engine(graph: Path, spec: TargetSpec, profile: Profile, report: Report = silent) -> Engine:
    """Build the engine of an encoder graph (input `image` uint8 [B,S,S,3]) for a target.

    Raises UserError with the library's own first complaint, and Stopped after a stop (Ctrl-C, SIGTERM), which
    ends the build at its next step.
    """
    require_buildable(spec)
    trt = spec.backend.load()
    log = logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise UserError(f"--target {spec}: {spec.backend.package} cannot read the graph ({reason}).")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if spec.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 10 bits of mantissa move scores by more than fp32 may
    config.add_optimization_profile(_profile(builder, network.get_input(0), profile))
    if spec.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{spec.capability}"), 0)
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else the runtime may not capture it into a graph
    with _interruptible() as interrupted:
        config.progress_monitor = progress = _progress(trt, report, interrupted)
        code = builder.build_serialized_network(network, config)
        del progress
    if interrupted.is_set():
        raise Stopped
    if code is None:
        reason = log.first_error(of_any_thread=True)
        raise UserError(f"--target {spec}: {spec.backend.package} cannot build the engine ({reason}).")
    built_with, capability = _built_with(trt, spec)
    return Engine(bytes(code), built_with, capability, WORKSPACE_BYTES)


def _profile(builder: Any, image: Any, profile: Profile) -> Any:
    sides = tuple(image.shape)[1:]
    made = builder.create_optimization_profile()
    made.set_shape(image.name, *((batch, *sides) for batch in (profile.min, profile.opt, profile.max)))
    return made


def _built_with(trt: Any, spec: TargetSpec) -> tuple[dict[str, str], str]:
    """Versions, and driver and GPU where the engine belongs to one; its compute capability ("86")."""
    versions = {spec.backend.package: trt.__version__}
    if spec.capability is not None:
        return versions, spec.capability
    gpu = require_gpu()
    return {**versions, "gpu": gpu.name, "driver": gpu.driver}, gpu.capability


def _progress(trt: Any, report: Report, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT ships no types
        """Tells each phase once, and stops the build after an interrupt."""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                report(Progress(f"engine: {phase_name}"))

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that a stop sets, instead of an exception that would cross the library's own code."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    numbers = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, lambda *_: interrupted.set()) for number in numbers]
    try:
        yield interrupted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
