"""Text from outside is data: shown without effect on a terminal, and bounded."""

import os
import re
from collections.abc import Iterable

MOST = 390  # characters of a message; with "error: " in front a line has less than 400
MOST_NAME = 500  # of a category
# control characters, lines' and paragraphs' ends, what turns the writing direction, and halves of characters
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with everything that would act on a terminal, or cannot be encoded, as an escape such as \\x1b."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), as_utf8(text))


def as_utf8(text: str) -> str:
    """The text, which a file name may be, so that any file format can hold it: bytes that are not UTF-8 as \\xff."""
    try:
        data = text.encode("utf-8", "surrogateescape")  # how Python keeps such bytes of a file name
    except UnicodeEncodeError:  # halves of characters, which Windows allows in names
        return text.encode("utf-8", "backslashreplace").decode()
    return data.decode("utf-8", "backslashreplace")


def shortened(text: str, most: int = MOST) -> str:
    """The text, or its start and its end, where the fix is, with "..." between them."""
    if len(text) <= most:
        return text
    tail = most * 2 // 5
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


def counted(number: int, one: str = "category", many: str = "categories") -> str:
    """A count with its noun: "1 category", "1,204 categories"."""
    return f"{number:,} {one if number == 1 else many}"


def joined(names: Iterable[str]) -> str:
    """Names in one cell of a table, divided by |. A | or a backslash in a name gets a backslash before it."""
    return "|".join(re.sub(r"([\\|])", r"\\\1", name) for name in names)


def divided(cell: str) -> list[str]:
    """The names of such a cell, without blanks around them. A backslash before anything else is a backslash."""
    parts = re.findall(r"(?:\\[\\|]|[^|])+", cell)
    return [name for part in parts if (name := re.sub(r"\\([\\|])", r"\1", part).strip())]


def escaped(text: str) -> str:
    """For a cell or a title of rich's tables, whose markup the text must not be."""
    from rich.markup import escape

    return escape(printable(shortened(text)))


def name_problem(name: str) -> str | None:
    """Why a string cannot be a category's name; None when it can."""
    if len(name) > MOST_NAME:
        return f"a name has {len(name):,} characters, at most {MOST_NAME} are possible"
    if UNSAFE.search(name):
        return f"the name {shortened(name, 60)!r} has a control character"
    return None


def path_problem(path: str) -> str | None:
    """Why a string cannot be a path; None when it can. Whether something is there is another question."""
    if "\0" in path:
        return "has a null byte"
    parts = os.fsencode(path).split(b"/") if not _has_high_surrogate(path) else None
    if parts is None:
        return "has half a character"
    if max(map(len, parts)) > 255 or len(path) > 4000:
        return "is longer than a path can be"
    return None


def no_file_name(error: UnicodeEncodeError) -> str:
    """What to do about a name, out of a UTF-8 file, that this process cannot give the system."""
    return (
        f"{error.object}: cannot name a file where the locale's encoding is {error.encoding}; set PYTHONUTF8=1, or a "
        "locale such as LC_ALL=C.UTF-8."
    )


def _has_high_surrogate(path: str) -> bool:
    """Whether it holds surrogates that are no escaped bytes of a file name (U+DC80 to U+DCFF)."""
    return any("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in path)
