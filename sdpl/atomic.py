"""What the operating system gives for losing nothing: two names exchanged in one step, temporaries that die with us.

A temporary is `.<name>.<random>.sdpl-tmp` beside the place it is for. While its process lives, it holds a lock on it
(flock), which the system takes back however the process ends: what is not locked is left over and may be deleted.
"""

import ctypes
import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

SUFFIX = ".sdpl-tmp"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)  # old kernels, some file systems, some sandboxes


def exchange(one: Path, other: Path) -> bool:
    """Let two names of one folder change places in one step; False where the system cannot (then nothing was done).

    At every moment, also after a kill or a power cut, both names exist.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


class Temporary:
    """A temporary file or folder beside `path`, locked until `close`, which deletes what is left at its name."""

    def __init__(self, path: Path, is_folder: bool):
        """Raises OSError when it cannot be made."""
        self.path, self._lock = self._make(path, is_folder)

    def close(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)

    @staticmethod
    def _make(path: Path, is_folder: bool) -> tuple[Path, int | None]:
        prefix = f".{path.name[:50]}."  # a long name plus ours would be too long
        while True:
            if is_folder:
                made = tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=SUFFIX)
            else:
                handle, made = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=SUFFIX)
                os.close(handle)
            held = lock(Path(made), wait=True)
            if held is None or Path(made).exists():  # not deleted as left over before it was locked
                return Path(made), held
            os.close(held)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is called as a temporary is."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporaries of processes that are dead. What is in use, or cannot be deleted, stays."""
    with suppress(OSError):
        for path in folder.glob(f".*{SUFFIX}"):
            try:
                held = lock(path, wait=False)
            except BlockingIOError:
                continue
            if held is None:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(held)


def lock(path: Path, wait: bool) -> int | None:
    """A handle that holds the lock on a file or folder; None where nothing can be locked (Windows, some network disks).

    Raises BlockingIOError when another process holds it, unless `wait`.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe is not waited for
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle
