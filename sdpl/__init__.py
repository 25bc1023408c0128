"""sdpl: multi-label image recognition with partial labels, from training to production."""

import importlib
import os

TYPE_CHECKING = False  # without `typing`: a command's first line (`sdpl.cli.entry`) comes after this
if TYPE_CHECKING:
    from typing import Any

    from sdpl.errors import UserError as UserError
    from sdpl.runtime import Recognition as Recognition
    from sdpl.runtime import Recognizer as Recognizer

__version__ = "0.2.0"
__all__ = ["Recognition", "Recognizer", "UserError", "__version__"]

_MODULES = {"Recognition": "sdpl.runtime", "Recognizer": "sdpl.runtime", "UserError": "sdpl.errors"}

# ONNX Runtime 1.29 and later send usage data from a thread that begins with the import and can abort the process, or
# hang a forked child, at exit. Only this variable, set before the import, keeps it from beginning.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> "Any":
    """`from sdpl import Recognizer` imports the runtime only then: `import sdpl` and --help stay instant."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sdpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What others may use, and the parts that are loaded."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "importlib", "os"})
