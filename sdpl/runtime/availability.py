"""What can run on this machine, and for what cannot, the one line that says what is missing and how to get it."""

import threading
from typing import Any

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.kernels.driver import context
from sdpl.kernels.gpu import find_gpu, gpu_obstacle, require_gpu
from sdpl.manifest import Profile, Target
from sdpl.runtime.machine import cpu_name
from sdpl.targets import BACKENDS, PRECISIONS, Backend, rebuild_command

REBUILD = "build it again"
INVALID = (  # the bits of TensorRT-RTX's diagnostics in its order, and what to do about each
    ("it was built with another version", REBUILD),
    ("it was built for another compute capability", REBUILD),
    ("the driver is too old", "update the driver"),
    ("the CUDA runtime is too old", f"{BACKENDS['tensorrt-rtx'].install}, with --upgrade"),
    ("the GPU has too little memory", "close other programs on it, or build for smaller batches"),
    ("the file is damaged", REBUILD),
    ("the driver failed", "look at nvidia-smi"),
)
LIBRARY_FAILS = "look at nvidia-smi; a driver older than CUDA needs an update"

_engines_are_refused = False


def refuse_engines() -> None:
    """From now on, this process opens no built engine of any bundle: an engine is native code, and is run as such."""
    global _engines_are_refused
    _engines_are_refused = True


def backend_obstacle(name: str, device: int = 0) -> str | None:
    """Why a backend cannot run here, or None. device: the number of the GPU, for those that need one."""
    backend = BACKENDS[name]
    obstacle = package_obstacle(backend)
    if obstacle is not None or not backend.needs_gpu:
        return obstacle
    gpu = find_gpu(device)
    if gpu is None:
        return gpu_obstacle(device)
    module = backend.load()
    if name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in module.get_available_providers():
        return f"onnxruntime {module.__version__} was built without CUDA: {backend.install}"
    if backend.capabilities and gpu.capability not in backend.capabilities:
        return (
            f"no TensorRT-RTX engines are built for compute capability {gpu.capability} ({gpu.name}): "
            "use tensorrt:fp16 or cuda:fp16"
        )
    return None


def package_obstacle(backend: Backend) -> str | None:
    """Why a backend's package cannot be used, or None."""
    try:
        module = backend.load()
    except (ImportError, OSError, RuntimeError) as error:  # the package, or a library that it loads
        lines = str(error).splitlines() or ["no reason given"]
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({lines[0]})"
        return f"{backend.package} {reason}: {backend.install}"
    if _version(module.__version__) < _version(backend.floor):
        return f"{backend.package} {module.__version__} is older than {backend.floor}: {backend.install}"
    return None


def precision_obstacle(backend: Backend, precision: str) -> str | None:
    """Why a precision that the library makes itself is of no use on this processor, or None."""
    if precision not in backend.narrows:
        return None
    core = backend.load().Core()
    if precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return (
        f"{cpu_name()} has no {precision} instructions (AVX512-BF16, AMX or Arm's BF16): it would only be slower than "
        f"{backend.kind}:fp32"
    )


def target_obstacle(bundle: Bundle, name: str, device: int = 0) -> str | None:
    """Why a bundle's target cannot run here, or None. An engine of another version or GPU comes with its fix."""
    target = bundle.manifest.targets[name]
    backend = BACKENDS[target.backend]
    if backend.builds_engines and _engines_are_refused:
        return "built engines are native code, which --no-engines does not run"
    obstacle = backend_obstacle(target.backend, device) or precision_obstacle(backend, target.precision)
    if obstacle is not None or not backend.builds_engines:
        return obstacle
    module = backend.load()
    built = target.built_with.get(backend.package)
    gpu, fix = require_gpu(device), rebuild(bundle, name, device)
    if built != module.__version__:
        return f"built with {module.__name__} {built}, here is {module.__version__}: {fix}"
    if target.compute_capability != gpu.capability:
        return f"built for compute capability {target.compute_capability}, {gpu.name} has {gpu.capability}: {fix}"
    if backend.capabilities:
        log = logger(module)
        try:
            gpu_context = context(device)
        except UserError as error:  # another process has the GPU for itself, or all of its memory
            return str(error).removesuffix(".")
        with gpu_context.current(), gpu_context.not_capturing:  # it may wait for the whole GPU, as loading does
            invalid = invalid_engine(module.Runtime(log), bundle.file(target.files["engine"]).read_bytes(), log)
        return invalid and invalid.replace(REBUILD, fix)
    return None


def rebuild(bundle: Bundle, name: str, device: int = 0) -> str:
    """The command that builds a target for this machine."""
    profile, gpu = bundle.manifest.targets[name].profile, find_gpu(device)
    batch = None if profile in (None, Profile()) else profile
    return rebuild_command(bundle.path, name, batch, gpu.capability if gpu else None)


def invalid_engine(runtime: Any, code: bytes, log: Any) -> str | None:
    """Why TensorRT-RTX will not take an engine, with the fix, or None; TensorRT itself has no such question. log: the
    runtime's `logger`, which knows more where the library itself fails."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(code)
    if "INVALID" not in str(validity):
        return None
    reasons = [f"{text}: {fix}" for i, (text, fix) in enumerate(INVALID) if int(bits) >> i & 1]
    if reasons:
        return "; ".join(reasons)
    reason = log.first_error(of_any_thread=True)[:300]
    return f"TensorRT-RTX fails ({reason}): {LIBRARY_FAILS}"


def in_order(targets: dict[str, Target]) -> list[str]:
    """Names of a bundle's targets, the fastest first as far as a table can say."""
    backends, precisions = list(BACKENDS), list(PRECISIONS)
    return sorted(targets, key=lambda n: (backends.index(targets[n].backend), precisions.index(targets[n].precision)))


def logger(trt: Any) -> Any:
    """A logger for TensorRT or TensorRT-RTX that says nothing and keeps the first error until it is asked for."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no types
        def __init__(self) -> None:
            super().__init__()
            self._own = threading.local()  # two batches may run at once
            self._first: str | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                text = " ".join(message.split())
                self._own.error = getattr(self._own, "error", None) or text
                self._first = self._first or text

        def forget(self) -> None:
            """What this thread was told so far is no reason for what fails later."""
            self._own.error = None

        def first_error(self, of_any_thread: bool = False) -> str:
            """The first error that this thread was told since then. of_any_thread: or else the first of all, for a
            build or a loading, which has a logger to itself and threads of its own."""
            other = self._first if of_any_thread else None
            return getattr(self._own, "error", None) or other or "no reason given"

    return Log()


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: "1.7.1.116" is (1, 7, 1, 116)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
