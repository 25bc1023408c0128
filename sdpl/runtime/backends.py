"""Which of a bundle's targets runs: what is asked for, what this machine can, what was measured as the fastest."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError, listed, nearest
from sdpl.kernels.compile import covering
from sdpl.kernels.gpu import require_gpu
from sdpl.manifest import Target
from sdpl.runtime.availability import in_order, target_obstacle
from sdpl.runtime.cpu import Cores, CpuModel, OnnxRuntimeCpu
from sdpl.runtime.timings import MEASURE, timings
from sdpl.targets import BACKENDS, KINDS, PRECISIONS, allowed_precisions, most_exact

if TYPE_CHECKING:
    from sdpl.runtime.device import Cuda
    from sdpl.runtime.gpu_resize import GpuResize


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

    @property
    def resizes(self) -> bool:
        """Whether a call also takes a list of decoded images, uint8 [H,W,3] of any sizes."""

    def scores(self, images: Any) -> np.ndarray:
        """float32 [B,C] from uint8 [B,S,S,3]."""

    def attention(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """scores float32 [B,C] and attention float32 [B,C,L] from uint8 [B,S,S,3]."""

    def embeddings(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """scores float32 [B,C] and embeddings of unit length, float32 [B,E], from uint8 [B,S,S,3]; only where the
        manifest says that there are some."""

    def describe(self) -> dict[str, str]:
        """Library, version, provider and threads, for reports."""

    def close(self) -> None:
        """Free everything. The backend cannot be used afterwards."""


@dataclass(frozen=True)
class Choice:
    """A target that was opened; why others that would have come first, or were not allowed, were not; and how it was
    chosen, in a few words."""

    target: str
    backend: Backend
    skipped: dict[str, str]
    reason: str = "named"


@dataclass(frozen=True)
class Wanted:
    """What a user asked for: a target's name, a backend's, or "auto"; the lowest precision that may be taken (None: the
    bundle's default, else float32); cores of a CPU, and calls that share them; the number of the GPU."""

    name: str = "auto"
    precision: str | None = None
    threads: int | None = None
    streams: int | None = None
    device: int = 0

    @classmethod
    def of(
        cls, name: str, precision: str | None, threads: int | None, streams: int | None, device: int = 0
    ) -> "Wanted":
        """ "auto:int8" is "auto" with int8 allowed."""
        base, _, lowest = name.partition(":")
        if base == "auto" and lowest:
            name, precision = base, precision or lowest
        return cls(name, precision, threads, streams, device)


def open_backend(bundle: Bundle, wanted: Wanted | None = None) -> Choice:
    """Open what is wanted of a bundle; of several targets the one that was measured as the fastest on this machine.

    Raises UserError that says, for each target that was asked for, why it cannot run here.
    """
    wanted = wanted or Wanted()
    cores = Cores.of(wanted.threads, wanted.streams)
    asked, skipped, reason = candidates(bundle, wanted)
    for candidate in asked:
        obstacle = target_obstacle(bundle, candidate, wanted.device)
        if obstacle is None:
            how = reason if candidate == asked[0] else f"{asked[0]} cannot run here"
            try:
                return Choice(candidate, _open(bundle, candidate, cores, wanted.device), skipped, how)
            except UserError as error:  # what only opening it can tell
                if len(asked) == 1:
                    raise
                obstacle = str(error)
        skipped = {candidate: obstacle} | skipped
    why = "; ".join(f"{target}: {obstacle}" for target, obstacle in skipped.items())
    raise UserError(f"{bundle.path}: nothing of it runs here. {why}")


def candidates(bundle: Bundle, wanted: Wanted) -> tuple[list[str], dict[str, str], str]:
    """Names of the targets to try, in order; those that are not allowed, with the reason; and what the order is by."""
    targets = bundle.manifest.targets
    if wanted.name not in ("auto", *targets, *BACKENDS):
        known = KINDS.get(wanted.name)
        hint = f"did you mean {known.name!r}?" if known else nearest(wanted.name, ["auto", *BACKENDS, *targets])
        raise UserError(f"backend {wanted.name!r}: {hint}")
    if wanted.name in targets:
        _require_precision(wanted, targets[wanted.name])
        return [wanted.name], {}, "named"
    asked = [name for name in in_order(targets) if wanted.name in ("auto", targets[name].backend)]
    if not asked:
        raise UserError(
            f"{bundle.path} has no target for {wanted.name}: sdpl-export makes one (it has {listed(targets)})."
        )
    lowest = wanted.precision or _default_precision(bundle, asked)
    allowed = [name for name in asked if targets[name].precision in allowed_precisions(lowest)]
    skipped = {
        name: f"{targets[name].precision} is less exact than {lowest}: --precision {targets[name].precision} allows it"
        for name in asked
        if name not in allowed
    }
    if not allowed:
        have = most_exact(targets[name].precision for name in asked)
        raise UserError(f"{bundle.path} has nothing as exact as {lowest}: --precision {have} takes what it has.")
    ordered, reason = _by_time(bundle, allowed, wanted)
    default = bundle.manifest.default_target
    if wanted.name == "auto" and wanted.precision is None and default is not None:
        return [default, *(name for name in ordered if name != default)], skipped, "the bundle's default"
    return ordered, skipped, reason


def _default_precision(bundle: Bundle, names: list[str]) -> str:
    """The lowest precision that is taken unasked: of the default that the export recorded, else the checkpoint's own,
    or the next best that these targets have."""
    targets, default = bundle.manifest.targets, bundle.manifest.default_target
    have = most_exact(targets[name].precision for name in names)
    return have if default is None else max((have, targets[default].precision), key=lambda p: PRECISIONS[p].score)


def _by_time(bundle: Bundle, names: list[str], wanted: Wanted) -> tuple[list[str], str]:
    """These targets, the fastest first, and how that is known: GPU targets that were never timed here, then the timed
    ones, then the rest in the table's order."""
    timed = {name: timing for name, timing in timings(bundle, wanted.device).items() if name in names}
    throughput = (wanted.streams or 1) > 1
    if not timed:
        if len(names) > 1:
            return names, f"a guess: not measured on this machine, {MEASURE}"
        return names, "the only one" if len(bundle.manifest.targets) == 1 else "the only one allowed that runs here"
    rest = [name for name in names if name not in timed]
    first = [name for name in rest if BACKENDS[bundle.manifest.targets[name].backend].needs_gpu]
    fastest = sorted(timed, key=lambda name: timed[name].image_ms(throughput))
    return [*first, *fastest, *(name for name in rest if name not in first)], "measured on this machine"


def _require_precision(wanted: Wanted, target: Target) -> None:
    """Raise UserError when a target that was named is less exact than the precision that was named."""
    if wanted.precision is not None and target.precision not in allowed_precisions(wanted.precision):
        raise UserError(f"--precision {wanted.precision}: {wanted.name} is less exact; name one of the two.")


def _open(bundle: Bundle, name: str, cores: Cores, device_id: int) -> Backend:
    target = bundle.manifest.targets[name]
    if not BACKENDS[target.backend].needs_gpu:
        return _open_cpu(bundle, target, cores)
    from sdpl.kernels.launch import Kernels
    from sdpl.runtime.device import Cuda
    from sdpl.runtime.engines import ENCODERS
    from sdpl.runtime.two_stage import TwoStage

    device, capability = Cuda(device_id), require_gpu(device_id).capability
    cubin = _code(bundle, target, "cubin", capability)
    kernels = None if target.is_whole else Kernels(PRECISIONS[target.precision].kernel_dtype, cubin, device_id)
    if kernels is not None and cubin is None:
        warnings.warn(
            f"{bundle.path} has no kernel for compute capability {capability}: it was compiled now, and is kept in "
            "the user's cache.",
            stacklevel=2,
        )
    with ExitStack() as made:  # what is to be undone when a later part fails
        if kernels is not None:
            made.callback(kernels.close)
        resize = _resize(bundle, target, device, capability)
        if resize is not None:
            made.callback(resize.close)
        encoder = ENCODERS[target.backend](bundle, name, target, device)
        made.callback(encoder.close)
        backend = TwoStage(target.backend, bundle, target, encoder, kernels, device, resize)
        made.pop_all()
        return backend


def _resize(bundle: Bundle, target: Target, device: "Cuda", capability: str) -> "GpuResize | None":
    """The resize kernel of the bundle, or compiled now; None, which leaves the work to the CPU, without either."""
    from sdpl.runtime.gpu_resize import GpuResize

    code = _code(bundle, target, "resize", capability)
    try:
        return GpuResize(bundle.manifest.preprocessing.image_size, device, code)
    except UserError:
        return None


def _code(bundle: Bundle, target: Target, kernel: str, capability: str) -> bytes | None:
    """A kernel's machine code for a GPU, of the bundle; None when it has none."""
    prefix = f"{kernel}.sm"
    built_for = covering(capability, (role.removeprefix(prefix) for role in target.files if role.startswith(prefix)))
    return bundle.file(target.files[f"{prefix}{built_for}"]).read_bytes() if built_for else None


def _open_cpu(bundle: Bundle, target: Target, cores: Cores) -> CpuModel:
    if target.backend == "openvino":
        from sdpl.runtime.openvino import OpenVinoCpu

        return OpenVinoCpu(bundle, target, cores)
    return OnnxRuntimeCpu(bundle, target, cores)
