"""What a user may name as images: files, folders, globs, lists of paths, and standard input."""

import codecs
import glob
import os
import sys
from collections.abc import Iterable, Iterator

from sdpl.errors import UserError
from sdpl.preprocess import SUFFIXES

STDIN = "-"


def expand(inputs: Iterable[str], recursive: bool = False, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
    """The paths that are meant, in a fixed order: of the inputs, and inside a folder or glob by name.

    An input is a file; a folder, for the files in it with one of the `suffixes` (with `recursive`, at any depth); a
    glob, for the files that fit it; `@list.txt`, a text file with a path in each line; or `-`, the same from standard
    input. A file is not looked at: one that is missing is found when it is read. Raises UserError for a folder or glob
    without images and for a list that cannot be read.
    """
    for text in inputs:
        if not text:
            raise UserError("'' is an empty path: name files, folders, globs or lists, or . for this folder.")
        if text == STDIN:
            if sys.stdin is None:
                raise UserError("-: standard input is closed; give the paths as words or in a list, @list.txt.")
            yield from _lines(sys.stdin.buffer, "standard input")
        elif text.startswith("@"):
            yield from _listed(text[1:])
        elif os.path.isdir(text):
            yield from _inside(text, recursive, suffixes)
        elif glob.has_magic(text) and not os.path.exists(text):
            found = sorted(path for path in glob.glob(text, recursive=True) if not os.path.isdir(path))
            if not found:
                raise UserError(f"{text}: no file fits this pattern.")
            yield from found
        else:
            yield text


def _inside(folder: str, recursive: bool, suffixes: tuple[str, ...]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: the folder cannot be listed ({error.strerror}).")

    found = False
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                found = True
                yield os.path.join(parent, name)
        if not recursive:
            break
    if not found:
        hint = "" if recursive else "; --recursive looks into its folders too"
        raise UserError(f"{folder}: no images in this folder ({', '.join(suffixes)}){hint}.")


def _listed(path: str) -> Iterator[str]:
    try:
        with open(path, "rb") as lines:
            yield from _lines(lines, f"@{path}")
    except OSError as error:
        raise UserError(f"@{path}: the list cannot be read ({error.strerror}).") from None


def _lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines without their ends, but for empty ones; bytes as they stand in file names, UTF-8 or not."""
    for number, line in enumerate(lines):
        path = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        if b"\0" in path:
            raise UserError(f"{name}: is not a text file with a path in each line; save it as UTF-8.")
        if path.strip():
            yield os.fsdecode(path.rstrip(b"\r\n"))
