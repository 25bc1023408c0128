"""What a forked child lacks: the threads of its parent. Whatever has some begins anew there.

A child that takes work to threads that it does not have waits for ever, and so does one that frees an inference engine,
which waits for its threads to end.
"""

import ctypes
import os
from typing import Any, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something with threads."""

    def after_fork(self) -> None:
        """Called in a forked child, before anything else runs there."""


_known: WeakSet[Any] = WeakSet()


def begin_anew_in_children(thing: Forked) -> None:
    """Have `thing.after_fork` called in each child that this process, or a child of it, forks."""
    _known.add(thing)


def never_free(thing: object) -> None:
    """Keep an object until the process ends, and then too: nothing of it is run any more."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _begin_anew() -> None:
    for thing in list(_known):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_begin_anew)
