"""Errors that a user can cause: one line that says what is wrong and how to fix it."""

import difflib
import errno
import itertools
from collections.abc import Iterable

from sdpl.text import printable, shortened

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file: there may be room later
MOST_COMPARED, LONGEST_COMPARED = 5000, 200  # of names and of their characters, for a hint: comparing is slow


class UserError(Exception):
    """Something the user can fix. The commands print it as one line and exit with status 2.

    The message may quote anything: it is made one line of at most `sdpl.text.MOST` printable characters.
    """

    def __init__(self, message: str):
        super().__init__(shortened(printable(" ".join(message.split()))))


class Stopped(KeyboardInterrupt):
    """A stop by Ctrl-C, SIGTERM or a closed terminal. Its message, if any, tells what is left and how to go on. The
    commands exit with status 130."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: "did you mean 'x'?" or what is known. Upper and lower case count as alike."""
    by_lower = {entry.lower(): entry for entry in sorted(known)}
    comparable = [entry for entry in itertools.islice(by_lower, MOST_COMPARED) if len(entry) < LONGEST_COMPARED]
    close = difflib.get_close_matches(name.lower()[:LONGEST_COMPARED], comparable, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]!r}?" if close else f"known: {listed(by_lower.values(), most=12)}"


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first few names of many, and how many more there are."""
    texts = [str(name) for name in names]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")
