"""What can run on this machine, and for what cannot, the one line that says what is missing and how to get it."""

import importlib
from typing import Any

from sdpl.bundle import Bundle, Target
from sdpl.kernels.launch import Gpu, find_gpu

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
INSTALL = {
    "onnxruntime-cpu": 'pip install "sdpl[runtime]"',
    "onnxruntime-cuda": 'pip install "sdpl[gpu]" in place of onnxruntime',
    "tensorrt-rtx": 'pip install "sdpl[rtx]"',
    "tensorrt": 'pip install "sdpl[tensorrt]"',
}
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")  # fastest first
PRECISIONS = ("int8", "fp16", "bf16", "fp32")  # fastest first, within a backend
INVALID = (  # the bits of TensorRT-RTX's diagnostics, in its order
    "it was built with another version",
    "it was built for another compute capability",
    "the driver is too old",
    "the CUDA runtime is too old",
    "the GPU has too little memory",
    "the file is damaged",
    "the driver failed",
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
    return None


def rebuild(bundle: Bundle, name: str, gpu: Gpu | str) -> str:
    """The command that builds a target for this machine."""
    parts = name.split(":")
    if parts[0] == "rtx" and isinstance(gpu, Gpu):
        parts[1] = f"sm{gpu.capability}"
    return f"sdpl-export {bundle.path} --target {':'.join(parts)}"


def invalid_engine(runtime: Any, code: bytes) -> str | None:
    """Why TensorRT-RTX will not take an engine, or None; TensorRT itself has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(code)
    if "INVALID" not in str(validity):
        return None
    reasons = [text for i, text in enumerate(INVALID) if int(bits) >> i & 1]
    return ", ".join(reasons) or "no reason given"


def in_order(targets: dict[str, Target]) -> list[str]:
    """Names of a bundle's targets, the fastest first."""
    return sorted(targets, key=lambda n: (BACKENDS.index(targets[n].backend), PRECISIONS.index(targets[n].precision)))
