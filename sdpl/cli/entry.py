"""Where every command starts. Imports next to nothing, so that a stop while the rest loads is our line and status 130.

Before its first line, while Python itself starts, nothing of sdpl can be asked; afterwards there is no gap: what is
loaded here and what ends a command is left at once (`leave`), in between `sdpl.cli.command` cleans up, and while Python
takes itself apart a stop changes nothing any more.
"""

import atexit
import os
import signal

from sdpl.signals import STOPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

END_S = 30  # seconds that Python may take to end; a library's thread or destructor has hung before
INTERRUPTED = "interrupted; nothing half-written is left."
STATUS_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def leave(number: int, frame: "FrameType | None") -> None:
    """End the process here: nothing is half-written, and an exception could be lost in somebody's import."""
    try:
        os.write(2, f"error: {INTERRUPTED}\n".encode())
    finally:  # whoever read it may be gone
        os._exit(STATUS_INTERRUPTED)


def leave_quietly(number: int, frame: "FrameType | None") -> None:
    """The same, of a command that has said its line about a stop."""
    os._exit(STATUS_INTERRUPTED)


def leave_when_stopped() -> None:
    """From here on a stop ends the process with our line, until a command cleans up instead."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job is not to be stopped by Ctrl-C
            signal.signal(number, leave)
    atexit.register(_end_undisturbed)  # the first that is registered is the last that is called


def _end_undisturbed() -> None:
    """The command is finished and its status known. Python is about to give every signal its default action back,
    except those that are ignored, and then takes a while to free what was loaded: END_S at most."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(END_S)


def _open_streams() -> None:
    """Fill the place of a standard stream that a shell has closed (`>&-`): the next file would be taken for it."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _starts(module: str, prog_name: str) -> "Callable[[], None]":
    """A console script: the `command` of a module in this package."""

    def start() -> None:
        _open_streams()
        leave_when_stopped()
        from importlib import import_module

        import_module(f"sdpl.cli.{module}").command(prog_name=prog_name)

    return start


main = _starts("group", "sdpl")
train = _starts("train", "sdpl-train")
sweep = _starts("sweep", "sdpl-sweep")
export = _starts("export", "sdpl-export")
evaluate = _starts("evaluate", "sdpl-eval")
predict = _starts("predict", "sdpl-predict")
score = _starts("score", "sdpl-score")
bench = _starts("bench", "sdpl-bench")
serve = _starts("serve", "sdpl-serve")
verify = _starts("verify", "sdpl-verify")
info = _starts("info", "sdpl-info")
data = _starts("data", "sdpl-data")
demo = _starts("demo", "sdpl-demo")
