"""Errors that a user can cause: one line that says what is wrong and how to mend it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The commands print it as one line and exit with status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: "did you mean 'x'?" or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first few names of many, and how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
