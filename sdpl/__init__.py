"""sdpl: multi-label image recognition with partial labels, from training to production."""

import importlib
import os

TYPE_CHECKING = False  # without `typing`: a command's first line (`sdpl.cli.entry`) comes after this
if TYPE_CHECKING:
    from typing import Any

    from sdpl.runtime import Recognition as Recognition
    from sdpl.runtime import Recognizer as Recognizer

__version__ = "0.2.0"
__all__ = ["Recognition", "Recognizer", "__version__"]


# ONNX Runtime 1.29 and later send usage data from a thread that begins with the import and can abort the process, or
# hang a forked child, at exit. Only this variable, set before the import, keeps it from beginning.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> "Any":
    """`from sdpl import Recognizer` imports the runtime only then: `import sdpl` and --help stay instant."""
    if name in ("Recognition", "Recognizer"):
        return getattr(importlib.import_module("sdpl.runtime"), name)
    raise AttributeError(f"module 'sdpl' has no attribute {name!r}")
