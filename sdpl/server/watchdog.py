"""What the supervisor does about a process that lives and does not get on: a decoder, an engine or a driver that hangs.

Each process keeps a number in its row of the counters that changes while it gets on: an engine's with each round of its
loop, a front end's with each heartbeat, but not while a picture is being decoded for too long. It is looked at once a
second, and looks are counted, not times: a machine that slept hangs nowhere.
"""

from collections.abc import Callable, Sequence

from sdpl.server.counters import Counters

LOOK_S = 1.0  # between two looks, and at most between two changes of an idle process
SLOWER = 20.0  # times slower than it was measured, a batch may be


class Watchdog:
    """Counts for how many looks each process has not got on."""

    def __init__(self, counters: Counters, hung_after_s: float):
        self._counters, self._hung_after_s = counters, hung_after_s
        self._seen: dict[int, tuple[float, int]] = {}  # by row: the number, and how often it was the same

    def hung(self, rows: Sequence[int]) -> list[int]:
        """Of these rows' processes, those that have not got on for too long; they are counted anew."""
        found = []
        for row in rows:
            progress, allowed_s = self._counters.progress(row)
            before, looks = self._seen.get(row, (progress, -1))
            looks = looks + 1 if progress == before and progress else 0
            self._seen[row] = progress, looks
            if looks * LOOK_S >= max(self._hung_after_s, allowed_s):
                found.append(row)
                self._seen[row] = progress, 0
        return found


class Decoding:
    """When each decoding of now began, in a front end."""

    def __init__(self, counters: Counters, clock: Callable[[], float]):
        self._counters, self._clock = counters, clock
        self._began: dict[int, float] = {}  # by thread

    def begin(self, thread: int) -> None:
        self._began[thread] = self._clock()

    def end(self, thread: int) -> None:
        self._began.pop(thread, None)

    def beat(self) -> None:
        """The heartbeat: the time, or when the oldest decoding of now began."""
        self._counters.get_on(min([self._clock(), *list(self._began.values())]))
