"""A stop while a command runs (Ctrl-C, SIGTERM, a closed terminal): an exception that cannot be lost, and one line."""

import math
import signal
import sys
import threading
import time
from types import FrameType

from sdpl.cli.entry import leave, leave_quietly
from sdpl.errors import Stopped
from sdpl.signals import STOPS

AGAIN_S = 0.01  # until a stop whose exception was lost is tried again
TWICE_S = 0.3  # in which a second signal is the same stop: sent to the process and to its group, as by `timeout`


class Stops:
    """While this is entered, SIGTERM and SIGHUP end a command as Ctrl-C does, by `Stopped`, so that what is
    half-written is cleaned up.

    Python's own KeyboardInterrupt will not do: once it has passed through an `exec` (of a dataclass that is being
    made), the interpreter ends by SIGINT, whatever status was given to sys.exit.
    """

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self._last = -math.inf
        self._before: dict[int, object] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPS}
            self._hook, sys.unraisablehook = sys.unraisablehook, self._again
            for number, handler in self._before.items():
                if handler != signal.SIG_IGN:  # a shell's background job is not to be stopped by Ctrl-C
                    signal.signal(number, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if not self._before:
            return
        sys.unraisablehook = self._hook
        stopped = self.arrived and kind is not None  # not where a library has swallowed the stop
        for number, handler in self._before.items():  # of a stopped command, none until its line is out
            signal.signal(number, signal.SIG_IGN if stopped and handler is leave else handler)  # type: ignore[arg-type]

    def said(self) -> None:
        """The command has said its line about the stop: a further one ends the process without another line."""
        for number, handler in self._before.items():
            if handler is leave and signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, leave_quietly)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= TWICE_S:
            self._last = now
            self.arrived.append(number)
            raise Stopped

    def _again(self, lost: "sys.UnraisableHookArgs") -> None:
        """The exception of a stop that came where none can pass, such as in a callback of the import system."""
        if self.arrived and issubclass(lost.exc_type, KeyboardInterrupt):
            self._last = -math.inf
            main_thread = threading.main_thread().ident
            threading.Timer(AGAIN_S, signal.pthread_kill, [main_thread, self.arrived[-1]]).start()
        else:
            self._hook(lost)
