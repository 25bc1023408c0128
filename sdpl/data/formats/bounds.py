"""What a label file may be, whatever its format: the boundary that all of them pass."""

from collections.abc import Sequence
from pathlib import Path

from sdpl.errors import UserError
from sdpl.text import path_problem, shortened

MAX_BYTES = 4 << 30  # of a file; Open Images' labels of 9 million images are 1 to 3 GB
MAX_LABELS = 1 << 31  # images x categories, a byte each
MAX_CATEGORIES = 100_000


def require_file(path: Path) -> None:
    """Raise UserError for what is no regular file of a possible size; FileNotFoundError where nothing is."""
    problem = path_problem(str(path))
    if problem:
        raise UserError(f"{shortened(str(path), 60)!r} {problem}.")
    status = path.stat()
    if path.is_dir():
        raise IsADirectoryError
    if not path.is_file():
        raise UserError(f"{path}: is a device or a pipe, not a label file.")
    if status.st_size > MAX_BYTES:
        raise UserError(f"{path}: has {status.st_size:,} bytes, more than {MAX_BYTES:,}; divide it.")


def require_room(path: Path, images: int, categories: int) -> None:
    """Raise UserError when the matrix of labels would be larger than any machine's memory is meant for."""
    if categories > MAX_CATEGORIES:
        raise UserError(f"{path}: has {categories:,} categories, at most {MAX_CATEGORIES:,} are possible.")
    if images * categories > MAX_LABELS:
        raise UserError(f"{path}: {images:,} images x {categories:,} categories are more than {MAX_LABELS:,} labels.")


def require_names(names: Sequence[str], path: Path) -> None:
    """Raise UserError when the name of an image cannot be a path."""
    for number, name in enumerate(names, 1):
        problem = path_problem(name)
        if problem:
            raise UserError(f"{path}: image {number}: its file name {shortened(name, 60)!r} {problem}.")
