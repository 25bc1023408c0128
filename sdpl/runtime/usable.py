"""What can run on this machine, and for what cannot, the one line that says what is missing and how to get it."""

import importlib
from typing import Any

from sdpl import tensorrt_packages
from sdpl.bundle import Bundle, Profile, Target
from sdpl.kernels.launch import Gpu, find_gpu
from sdpl.tensorrt_packages import PACKAGES, RTX_CAPABILITIES, logger

INSTALL = {
    "onnxruntime-cpu": 'pip install "sdpl[runtime]"',
    "onnxruntime-cuda": 'pip install "sdpl[gpu]" in place of onnxruntime',
    **tensorrt_packages.INSTALL,
}
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")  # fastest first
PRECISIONS = ("int8", "fp16", "bf16", "fp32")  # fastest first, within a backend
REBUILD = "build it again"
INVALID = (  # the bits of TensorRT-RTX's diagnostics in its order, and what mends each
    ("it was built with another version", REBUILD),
    ("it was built for another compute capability", REBUILD),
    ("the driver is too old", "update the driver"),
    ("the CUDA runtime is too old", 'pip install -U "sdpl[rtx]"'),
    ("the GPU has too little memory", "close other programs on it, or build for smaller batches"),
    ("the file is damaged", REBUILD),
    ("the driver failed", "look at nvidia-smi"),
)


def backend_obstacle(backend: str) -> str | None:
    """Why a backend cannot run here, or None."""
    package = PACKAGES.get(backend, "onnxruntime")
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({lines[:1]})"
        return f"{package} {reason}: {INSTALL[backend]}"
    if backend == "onnxruntime-cpu":
        return None
    gpu = find_gpu()
    if isinstance(gpu, str):
        return gpu
    if backend == "onnxruntime-cuda" and "CUDAExecutionProvider" not in module.get_available_providers():
        return f"onnxruntime {module.__version__} was built without CUDA: {INSTALL[backend]}"
    if backend == "tensorrt-rtx" and gpu.capability not in RTX_CAPABILITIES:
        return (
            f"no TensorRT-RTX engines are built for compute capability {gpu.capability} ({gpu.name}): "
            "use tensorrt:fp16 or cuda:fp16"
        )
    return None


def target_obstacle(bundle: Bundle, name: str) -> str | None:
    """Why a bundle's target cannot run here, or None. An engine of another version or GPU comes with its mend."""
    target = bundle.manifest.targets[name]
    obstacle = backend_obstacle(target.backend)
    if obstacle is not None or target.backend not in PACKAGES:
        return obstacle
    module = importlib.import_module(PACKAGES[target.backend])
    built = target.built_with.get(PACKAGES[target.backend])
    gpu = find_gpu()
    mend = rebuild(bundle, name, gpu)
    if built != module.__version__:
        return f"built with {module.__name__} {built}, here is {module.__version__}: {mend}"
    if target.compute_capability != gpu.capability:
        return f"built for compute capability {target.compute_capability}, {gpu.name} has {gpu.capability}: {mend}"
    if target.backend == "tensorrt-rtx":
        invalid = invalid_engine(module.Runtime(logger(module)), bundle.file(target.files["engine"]).read_bytes())
        return invalid and invalid.replace(REBUILD, mend)
    return None


def rebuild(bundle: Bundle, name: str, gpu: Gpu | str) -> str:
    """The command that builds a target for this machine."""
    parts, profile = name.split(":"), bundle.manifest.targets[name].profile
    if parts[0] == "rtx" and isinstance(gpu, Gpu):
        parts[1] = f"sm{gpu.capability}"
    batch = f" --batch {profile}" if profile not in (None, Profile()) else ""
    return f"sdpl-export {bundle.path} --target {':'.join(parts)}{batch}"


def invalid_engine(runtime: Any, code: bytes) -> str | None:
    """Why TensorRT-RTX will not take an engine, with the mend, or None; TensorRT itself has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(code)
    if "INVALID" not in str(validity):
        return None
    reasons = [f"{text}: {mend}" for i, (text, mend) in enumerate(INVALID) if int(bits) >> i & 1]
    return "; ".join(reasons) or "TensorRT-RTX does not say why it will not take the engine"


def in_order(targets: dict[str, Target]) -> list[str]:
    """Names of a bundle's targets, the fastest first."""
    return sorted(targets, key=lambda n: (BACKENDS.index(targets[n].backend), PRECISIONS.index(targets[n].precision)))
