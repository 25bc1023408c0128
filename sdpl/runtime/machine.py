"""This machine in a few words: what decides how fast something runs here, and what tells it from another."""

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from sdpl import __version__
from sdpl.cores import available_cores, physical_cores
from sdpl.kernels.gpu import find_gpu

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "torch")


def packages() -> dict[str, str]:
    """Versions of the packages that matter here and are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_info(key: str) -> str | None:
    """The first core's entry in /proc/cpuinfo; None where there is no such file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
    except OSError:
        return None


def cpu_name() -> str:
    return cpu_info("model name") or platform.processor() or platform.machine()


def fingerprint(device: int = 0) -> str:
    """12 hexadecimal digits of everything that decides a target's speed here: processor and its instructions, cores,
    GPU (the one with this number) and driver, versions."""
    gpu = find_gpu(device)
    versions = {name: number for name, number in packages().items() if name != "torch"}
    facts = [
        __version__,
        platform.platform(),
        cpu_name(),
        cpu_info("flags") or cpu_info("Features"),
        available_cores(),
        physical_cores(),
        (gpu.name, gpu.driver) if gpu else None,
        versions,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
