"""Writing files and folders so that nothing half-written is ever seen and nothing old is lost."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from sdpl.atomic import Temporary, exchange, lock, remove_leftovers
from sdpl.errors import FULL, UserError

LOCK = ".sdpl.lock"  # stays in the folders in which bundles are swapped; taking it away again would break the lock


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the operating system (no space, no permission) into one line about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "Free space or choose" if error.errno in FULL else "Choose"
        raise UserError(f"cannot write {path}: {reason}; nothing was changed there. {fix} another place.") from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write; on success it takes the place of `path`, on failure it is deleted.

    Raises UserError when the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    path = _named(path)
    with writing(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is a device or a pipe, which is not replaced; choose another place.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Temporary(path, is_folder=False)
        try:
            yield temporary.path
            temporary.path.chmod(0o666 & ~_umask())
            sync(temporary.path)
            os.replace(temporary.path, path)
            sync(path.parent)
        finally:
            temporary.close()


def share_file(source: Path, path: Path) -> None:
    """Give `path` the content of a file beside it that is only ever replaced: a second name for it (a hard link), or a
    copy where the file system has no such thing. Raises UserError as `replace_file`."""
    with replace_file(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def replace_folder(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary sibling folder to fill; on success it takes the place of `path`.

    An existing `path` is replaced only when `is_ours(path)`; until the new folder is whole the old one stays, and then
    both change places in one step. What killed processes left beside it is deleted. Raises UserError when `path` is
    something else, cannot be written, or the disk is full.
    """
    path = _named(path)
    with writing(path):
        recover_folder(path)
        if path.exists() and not is_ours(path):
            raise UserError(f"{path} exists and was not made by sdpl: choose another --out, or remove it first.")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary = Temporary(path, is_folder=True)
        try:
            yield temporary.path
            for entry in (temporary.path, *temporary.path.rglob("*")):
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
                sync(entry)
            with one_at_a_time(path.parent):
                if path.exists() and not is_ours(path):
                    raise UserError(f"{path} was changed by something else meanwhile; it is left alone. Try again.")
                _swap(temporary.path, path)
            sync(path.parent)
        finally:
            temporary.close()


def recover_folder(path: Path) -> None:
    """Put back what a kill left beside `path` where the system cannot exchange two names in one step."""
    retired = _retired(_named(path))
    if path.exists() or not retired.exists():
        return
    with suppress(OSError), one_at_a_time(path.parent):  # a swap that is at work is waited for
        if not path.exists():
            os.replace(retired, path)


@contextmanager
def only_one_run(folder: Path) -> Iterator[None]:
    """Refuses a second run into a folder that another process is writing into. Makes the folder; raises UserError."""
    is_new = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder, wait=False)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another run is writing into it; wait until it has ended, or choose another --out."
        ) from None
    try:
        remove_leftovers(folder)
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it holds something, as it should
                folder.rmdir()
        if held is not None:
            os.close(held)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits while another process swaps something in this folder; where nothing can be locked, does not wait."""
    swap = FileLock(folder / LOCK)
    try:
        swap.acquire()
    except (OSError, NotImplementedError):  # some network file systems
        yield
        return
    try:
        yield
    finally:
        swap.release()


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
    """Put `new` in the place of `path`. Where two steps are needed and something stops them, the old is put back."""
    if not path.exists():
        os.replace(new, path)
        return
    if exchange(new, path):  # what was at `path` is at `new` now, and goes with the temporary
        return
    retired = _retired(path)
    shutil.rmtree(retired, ignore_errors=True)
    try:
        os.replace(path, retired)
        os.replace(new, path)
    except BaseException:
        if not path.exists():
            os.replace(retired, path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)


def _retired(path: Path) -> Path:
    """Where the old folder is for a moment, on systems that cannot exchange two names."""
    return path.parent / (f".{path.name[:50]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}.old")


def _named(path: str | Path) -> Path:
    """The path, made absolute where it has no name of its own, as "." has none."""
    path = Path(path)
    return path if path.name else Path(os.path.abspath(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
