"""Writing files and folders so that nothing half-written is ever seen and nothing old is lost."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from sdpl.errors import UserError

LOCK = ".sdpl.lock"  # stays in the folders in which bundles are swapped; taking it away again would break the lock


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the operating system (no space, no permission) into one line about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; nothing was changed there. Free space or choose another place."
        ) from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write; on success it takes the place of `path`, on failure it is deleted.

    Raises UserError when the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary sibling folder to fill; on success it takes the place of `path`.

    An existing `path` is replaced only when `is_ours(path)`; until the new folder is whole the old one stays.
    Raises UserError when `path` is something else, cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not is_ours(path):
        raise UserError(f"{path} exists and was not made by sdpl: choose another --out, or remove it first.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            for entry in (temporary, *temporary.rglob("*")):
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
                sync(entry)
            with one_at_a_time(path.parent):
                if path.exists() and not is_ours(path):
                    raise UserError(f"{path} was changed by something else meanwhile; it is left alone. Try again.")
                _swap(temporary, path)
            sync(path.parent)
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(temporary)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits while another process swaps something in this folder; where nothing can be locked, does not wait."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # some network file systems
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def naming(temporary: Path, path: Path) -> Iterator[None]:
    """Errors about files in a temporary folder name them where they will be."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error.__cause__


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, whole or not at all. Raises UserError as `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's entries, before going on: a power cut then loses neither."""
    if path.is_dir() and os.name == "nt":  # Windows flushes no folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(handle)


def _swap(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; whatever stops it, the old folder is put back."""
    if not path.exists():
        os.replace(new, path)
        return
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    try:
        os.replace(path, retired / "old")
        os.replace(new, path)
    except BaseException:
        if not path.exists():
            os.replace(retired / "old", path)
        shutil.rmtree(retired, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
