"""Builds the CUDA driver of host memory (`driver/driver.cpp`), and the settings with which a process runs on it.

The unmodified cuda-python of such a process finds it as libcuda.so.1, so the tests behind the marker `host_driver` run
in a process of their own: `tests/test_on_host_driver.py` starts it. Inside of it, `get` and `put` read the driver's
counters and change its settings.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdpl.kernels.compile import DTYPES, RESIZE_SOURCE, source

HERE = Path(__file__).parent / "driver"
FLAGS = (
    "g++",
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-Wno-unknown-pragmas",
)
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def build(folder: Path, driver: str = "driver.cpp", flags: tuple[str, ...] = ()) -> dict[str, str]:
    """Compile the driver and the emulated kernels into a folder; the environment of a process that is to use them.
    driver: which source of the folder `driver` it is made from. flags: further ones of the compiler."""
    if shutil.which("g++") is None:
        pytest.skip("the driver of host memory needs g++")
    library = folder / "libcuda.so.1"
    commands = [[*FLAGS, *flags, "-I", cuda_headers(), str(HERE / driver), "-o", str(library), "-ldl", "-lpthread"]]
    commands.append([*FLAGS, str(HERE / "nvml.cpp"), "-o", str(folder / "libnvidia-ml.so.1")])
    kernels = [folder / "kernels-resize.so"]
    commands.append(_emulated(RESIZE_SOURCE, ["resize_pass"], kernels[0]))
    joined = folder / "kernels.cu"
    joined.write_text(source())
    for dtype, number in DTYPES.items():
        kernels.append(folder / f"kernels-{dtype}.so")
        commands.append(_emulated(joined, _entries(dtype), kernels[-1], f"-DSDPL_DTYPE={number}"))
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands):
            assert result.returncode == 0, result.stderr[:2000]
    return {
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "HOST_DRIVER": str(library),
        "HOST_DRIVER_KERNELS": ":".join(map(str, kernels)),
    }


def get(name: str) -> int:
    """A number of the driver: "used" bytes, "pinned" blocks, "streams", "graphs", "modules", work "waiting" on streams,
    how many calls so far "may_fail", or how often a function of the driver was called, by its name."""
    return int(_driver().host_driver_get(name.encode()))


def put(name: str, value: int) -> None:
    """Set a number of the driver: "memory" of each GPU, "capability", "multiprocessors", "version", "seed",
    "alike": 1 for GPUs of one name; "trusting": 1 for kernels and copies that may use any memory of the host;
    "init_status", "context_status": what cuInit and the making of a context end with;
    "fail_after": the call, of those that may run out of memory, that does."""
    _driver().host_driver_set(name.encode(), ctypes.c_long(value))


def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["HOST_DRIVER"])
    library.host_driver_get.restype = ctypes.c_long
    return library


def _emulated(source: Path, entries: list[str], library: Path, *definitions: str) -> list[str]:
    """The command that makes a library of the emulated kernels of a CUDA source."""
    names = " ".join(f"KERNEL({name})" for name in entries)
    macros = (f'-DSDPL_SOURCE="{source}"', f"-DSDPL_KERNELS={names}", *definitions)
    return [*FLAGS, *macros, str(HERE / "emulated.cpp"), "-o", str(library)]


def _entries(dtype: str) -> list[str]:
    """The entry points of a dtype, as the source's macros name them."""
    kernels = ("forward", "scores", "backward_u", "backward_vq")
    return [f"{kernel}_{SHORT[dtype]}_{rows}" for kernel in kernels for rows in ("aligned", "any")]


def cuda_headers() -> str:
    """The folder of cuda.h in the wheel that PyTorch brings."""
    for root in importlib.util.find_spec("nvidia").submodule_search_locations:
        for header in Path(root).glob("*/include/cuda.h"):
            if int(re.search(r"#define CUDA_VERSION (\d+)", header.read_text())[1]) >= 13000:
                return str(header.parent)
    pytest.skip("the driver of host memory needs cuda.h of CUDA 13")
