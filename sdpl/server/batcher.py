"""Dynamic batching: rows wait in line, and leave in batches of the engine's own sizes.

It knows nothing of HTTP, gRPC, processes or models, and of time only what it is told.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


@dataclass
class Batcher(Generic[Item]):
    """One model's line. Times are nanoseconds of one clock.

    batch_sizes: what the engine runs well, smallest first. max_delay: how long the oldest row may be held back for a
    fuller batch; with 0 the engine takes whatever waits as soon as it is free.
    """

    batch_sizes: tuple[int, ...]
    max_delay: int = 0
    _rows: deque[tuple[Item, int, int]] = field(default_factory=deque)  # item, arrival, deadline
    _cancelled: set[Item] = field(default_factory=set)
    _earliest: float = math.inf  # no row's deadline is before it

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def oldest(self) -> int | None:
        """Arrival of the row that waits longest."""
        return self._rows[0][1] if self._rows else None

    def add(self, item: Item, arrival: int, deadline: int) -> None:
        self._cancelled.discard(item)  # that was meant for an earlier row of this name, which has left
        self._rows.append((item, arrival, deadline))
        self._earliest = min(self._earliest, deadline)

    def cancel(self, item: Item) -> None:
        """Have a row dropped before it costs anything; one that has left already is not affected."""
        self._cancelled.add(item)

    def drop(self, now: int) -> tuple[list[Item], list[Item]]:
        """Take out, and return, the rows whose deadline has passed, and those that were cancelled."""
        if not self._cancelled and now < self._earliest:
            return [], []
        expired, cancelled = [], []
        kept: deque[tuple[Item, int, int]] = deque()
        for row in self._rows:
            item, _, deadline = row
            if item in self._cancelled:
                cancelled.append(item)
            elif deadline <= now:
                expired.append(item)
            else:
                kept.append(row)
        self._cancelled.clear()
        self._rows = kept
        self._earliest = min((deadline for _, _, deadline in kept), default=math.inf)
        return expired, cancelled

    def remove(self, is_gone: Callable[[Item], bool]) -> None:
        """Take rows out without a word: whoever sent them is gone."""
        self._rows = deque(row for row in self._rows if not is_gone(row[0]))

    def ready_at(self) -> int | None:
        """When the next batch may leave; None while nothing waits. A full batch may leave at once."""
        if not self._rows:
            return None
        return self._rows[0][1] + (0 if len(self._rows) >= self.batch_sizes[-1] else self.max_delay)

    def take(self) -> list[tuple[Item, int]]:
        """The next batch, each row with its arrival: the oldest rows, as many as the largest size that they fill."""
        waiting = len(self._rows)
        size = max((size for size in self.batch_sizes if size <= waiting), default=waiting)
        return [self._rows.popleft()[:2] for _ in range(min(size, waiting))]
