"""libtiff writes its own line about a damaged file to the process's standard error, beside the one that names it."""

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import PIL


@cache
def silence_libtiff() -> None:
    """Take the handler that writes away from the copy of libtiff in Pillow's wheel; Pillow raises all the same.

    A libtiff of the system, which other libraries of the process may share, is left as it is.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return
    for path in (Path(PIL.__file__).parents[1] / "pillow.libs").glob("libtiff*.so*"):
        with suppress(OSError, AttributeError):  # not the one that is loaded
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            library.TIFFSetErrorHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler(None)
