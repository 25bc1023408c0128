"""The last net: an error that nobody foresaw becomes one line and a report file for those who fix it."""

import contextlib
import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STATUS = 70  # EX_SOFTWARE of sysexits.h: a fault of the program, not of its input
PACKAGES = (
    "click", "cuda-bindings", "cuda-core", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu",
    "open_clip_torch", "pillow", "pydantic", "safetensors", "tensorrt", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip


def explain(error: BaseException, command: str) -> str:
    """One line about the error, which names the report that was written. Claims no fix."""
    path = write_report(error, command)
    where = f"the report {path} says where" if path else "no report could be written"
    return f"{type(error).__name__} in sdpl {command}, which sdpl did not foresee; {where}. Please report it."


def write_report(error: BaseException, command: str) -> Path | None:
    """`sdpl-error-<time>-<process>.txt` in the working folder, or where temporary files go; None when neither can be.

    Versions, the command's name and the traceback: no arguments, no values of variables, no data.
    """
    lines = [f"command: sdpl {command}", f"python: {sys.version.split()[0]} on {platform.platform()}"]
    for name in ("sdpl-toolkit", *PACKAGES):
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{name}: {version(name)}")
    text = "\n".join(lines) + "\n\n" + "".join(traceback.format_exception(error))
    name = f"sdpl-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            path = folder() / name
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return path
    return None
