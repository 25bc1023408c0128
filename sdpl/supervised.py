"""Work that outlives what crashes it: it runs in a child process, which is started again when it dies.

A picture may crash a decoder in native code, or take all memory. The parent holds nothing but this module, and a few
numbers that it shares with the child: which shards were in work. The next child is told, and does these carefully.
"""

import mmap
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from sdpl.errors import Stopped, UserError, listed
from sdpl.signals import STOPS

MOST = 64  # shards in work that are remembered
WITHOUT_PROGRESS = 10  # deaths without one finished shard between them, after which something else is wrong
HUNG = 75  # exit status of a child that gives up on work that does not end (EX_TEMPFAIL)
CRASHES = [
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP", "SIGKILL")
    if hasattr(signal, name)
]


class Journal:
    """What was in work, in memory that outlives the child; `deaths`: how often a child died while a shard was."""

    def __init__(self, tries: int):
        """tries: deaths after which a shard is given up."""
        self.tries, self.deaths = tries, Counter[int]()
        self._cells = memoryview(mmap.mmap(-1, 8 * (MOST + 1))).cast("q")  # shared with children; the last one counts
        self._lock = threading.Lock()

    def begin(self, shard: int) -> None:
        with self._lock, suppress(ValueError):
            self._cells[self._cells[:MOST].tolist().index(0)] = shard + 1

    def end(self, shard: int) -> None:
        """It is finished, or failed in an orderly way."""
        with self._lock:
            self._cells[MOST] += 1
            with suppress(ValueError):
                self._cells[self._cells[:MOST].tolist().index(shard + 1)] = 0

    def bury(self) -> tuple[list[int], int]:
        """After a death: the shards that were in work, and how many had ended since the last one."""
        lost, ended = sorted(cell - 1 for cell in self._cells[:MOST] if cell), self._cells[MOST]
        self.deaths.update(lost)
        self._cells[:] = memoryview(bytes(8 * (MOST + 1))).cast("q")
        return lost, ended


def supervise(tries: int, keep_stdin: bool = False) -> Journal | None:
    """Go on in a child process, and in another one whenever that crashes: returns in each of them.

    The parent stays here, and leaves with the last child's exit status (SystemExit), or with Stopped when a child died
    though it was to stop. tries: of what crashes a child.
    keep_stdin: each child reads standard input from its beginning. Raises UserError in the parent when children die
    without getting on. None, with nothing done, where a fork is not safe: numpy is loaded, so that there may be threads
    and engines that do not survive it; the caller catches what is printed; or the system has none.
    """
    alone = "numpy" not in sys.modules and threading.active_count() == 1 and sys.stdout is sys.__stdout__
    if not hasattr(os, "fork") or not alone:
        return None
    journal, deaths = Journal(tries), 0
    if keep_stdin:
        _keep_stdin()
    handlers = {number: signal.getsignal(number) for number in STOPS}
    stops: list[int] = []  # that have come
    while True:
        if keep_stdin:
            os.lseek(0, 0, os.SEEK_SET)
        sys.stdout.flush()
        sys.stderr.flush()
        alive, held = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until each of the two knows what a stop means
        if stops:  # while there was no child
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            raise Stopped
        child = os.fork()
        if child == 0:
            os.close(held)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
            return journal
        os.close(alive)
        status = _wait(child, stops)
        os.close(held)
        if -status not in CRASHES and status != HUNG:
            raise SystemExit(status if status >= 0 else 128 - status)
        if stops:  # it died of something else before it could obey
            raise Stopped
        lost, ended = journal.bury()
        deaths = 1 if ended else deaths + 1
        _tell(status, lost, deaths)


def _tell(status: int, lost: list[int], deaths: int) -> None:
    """Say what was in work when a child ended so. Raises UserError where another one would get no further."""
    how = "hung" if status == HUNG else f"was ended by {signal.Signals(-status).name}"
    if not lost or deaths >= WITHOUT_PROGRESS:
        when = "before it worked on anything" if not lost else f"{deaths} times without finishing anything"
        raise UserError(f"the process {how} {when}: too little memory, or a fault of a library on this machine.")
    shards = f"shard{'s' if len(lost) > 1 else ''} {listed(map(str, lost))}"
    print(f"the process {how} in the middle of {shards}; going on, and back to that at the end", file=sys.stderr)


def _wait(child: int, stops: list[int]) -> int:
    """The child's exit status, or minus the signal that ended it. What stops this process alone is handed on, and added
    to `stops`; the child takes what comes twice, from a terminal and from here, for one stop."""

    def hand_on(number: int, frame: Any) -> None:
        stops.append(number)
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with_parent(alive: int) -> None:
    """Wait for the end of a pipe that the parent holds, and leave at once: nobody would start another child."""
    os.read(alive, 1)
    os._exit(1)


def _keep_stdin() -> None:
    """Put a file in the place of standard input, with what that gives."""
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        os.dup2(copy.fileno(), 0)
