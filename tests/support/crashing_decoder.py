"""A decoder with a fault, for the processes that a test starts: content that is a signal's name ends its process."""

import os
import sys
from pathlib import Path

CRASHES = """
import os, signal, time
import PIL.Image
real = PIL.Image.open
def opened(stream, *words, **named):
    what = stream.read(7)
    stream.seek(0)
    if what[:3] == b"SIG":
        os.kill(os.getpid(), getattr(signal, what.decode()))
    if what == b"FOREVER":
        time.sleep(1000)
    return real(stream, *words, **named)
PIL.Image.open = opened
"""


def environment(folder: Path) -> dict[str, str]:
    """With it, Python starts with that decoder; so do the processes that are started from there."""
    (folder / "sitecustomize.py").write_text(CRASHES)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
