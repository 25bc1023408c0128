"""Files of this machine and of the file systems that fsspec knows (`s3://`, `gs://`), behind the same few calls."""

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from sdpl.errors import UserError
from sdpl.files import replace_file

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class StorageError(UserError):
    """Storage failed, not an image: trying again may help, and no image is to be called bad for it."""


def is_url(location: str) -> bool:
    """Whether a location names a file system of fsspec, such as s3://bucket/key."""
    return "://" in location


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError when its package is missing."""
    from fsspec.core import url_to_fs

    scheme = url.split("://")[0]
    try:
        fs, path = url_to_fs(url)
    except ImportError:
        package = PACKAGES.get(scheme, "its package")
        raise UserError(f"{url}: {scheme}:// needs {package}: pip install {package}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}.") from None
    return fs, path


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn whatever a file system raises into one line: UserError when it is not there, else StorageError."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{location}: there is no such file, bucket or key.") from None
    except PermissionError:
        raise StorageError(f"{location}: permission denied; check the credentials of this machine.") from None
    except Exception as error:  # storage libraries share no base class
        raise StorageError(f"{location}: cannot be read ({type(error).__name__}: {error}).") from None


def open_file(location: str) -> IO[bytes]:
    """A path or URL, opened to be read in one pass; use inside `reading`."""
    if not is_url(location):
        return open(location, "rb")
    fs, path = file_system(location)
    opened: IO[bytes] = fs.open(path, "rb", block_size=8 << 20, cache_type="readahead")
    return opened


def read_bytes(location: str) -> bytes:
    """A whole small object. Raises UserError when it is not there, StorageError when the storage fails."""
    with reading(location):
        fs, path = file_system(location)
        content: bytes = fs.cat_file(path)
        return content


def list_url(url: str, recursive: bool, suffixes: tuple[str, ...]) -> Iterator[tuple[str, int | None]]:
    """What a URL means, with sizes in bytes: an object, a glob, or what lies under a prefix. Raises UserError."""
    fs, path = file_system(url)
    with reading(url):
        if any(sign in path for sign in "*?["):
            entries = fs.glob(path, detail=True)
        elif path.lower().endswith(suffixes):
            entries = {path: fs.info(path)}
        else:
            entries = fs.find(path, maxdepth=None if recursive else 1, detail=True)
    found = sorted((name, entry.get("size")) for name, entry in entries.items() if name.lower().endswith(suffixes))
    del entries
    fs.invalidate_cache()  # it would keep all that it knows of every object for as long as the job runs
    if not found:
        hint = "" if recursive else "; --recursive looks deeper"
        raise UserError(f"{url}: nothing to score under it ({', '.join(suffixes)}){hint}.")
    for name, size in found:
        yield fs.unstrip_protocol(name), size


class Store(Protocol):
    """The folder of the output."""

    location: str

    def names(self) -> set[str]:
        """The files in it."""

    def has(self, name: str) -> bool:
        """Whether it holds this file."""

    def open(self, name: str) -> IO[bytes]:
        """One of its files, to be read."""

    def replace(self, name: str) -> Any:
        """A context that gives a path to write; the file takes its name, whole, when the context ends well."""

    def contains(self, location: str) -> bool:
        """Whether a path or URL lies in it, and not deeper."""

    def clear_unfinished(self) -> None:
        """Delete what killed runs left half-written."""


class LocalStore:
    """A folder of this machine, or one that all machines mount."""

    def __init__(self, location: str):
        self.location = location
        self._folder = Path(location)

    def names(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self._folder)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be listed ({error.strerror}); choose another --out.") from None

    def has(self, name: str) -> bool:
        return os.path.exists(self._folder / name)

    def open(self, name: str) -> IO[bytes]:
        return open(self._folder / name, "rb")

    def replace(self, name: str) -> Any:
        return replace_file(self._folder / name)

    def contains(self, location: str) -> bool:
        return not is_url(location) and os.path.realpath(os.path.dirname(location)) == os.path.realpath(self._folder)

    def clear_unfinished(self) -> None:
        for name in self.names():
            if name.startswith((".shard-", ".job.", ".inputs.")):
                (self._folder / name).unlink(missing_ok=True)


class UrlStore:
    """A prefix of an object store: an object appears whole when its upload ends."""

    def __init__(self, location: str):
        self.location = location.rstrip("/")
        self._fs, self._path = file_system(self.location)

    def names(self) -> set[str]:
        self._fs.invalidate_cache()
        with reading(self.location), suppress(FileNotFoundError):
            return {posixpath.basename(name) for name in self._fs.ls(self._path, detail=False)}
        return set()

    def has(self, name: str) -> bool:
        with reading(self.location):
            return bool(self._fs.exists(f"{self._path}/{name}"))

    def open(self, name: str) -> IO[bytes]:
        opened: IO[bytes] = self._fs.open(f"{self._path}/{name}", "rb")
        return opened

    @contextmanager
    def replace(self, name: str) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="sdpl-score-"))
        try:
            yield folder / name
            self._fs.put_file(str(folder / name), f"{self._path}/{name}")
        except UserError:
            raise
        except Exception as error:  # storage libraries share no base class
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"cannot write {self.location}/{name} ({what}); nothing was changed there.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def contains(self, location: str) -> bool:
        return posixpath.dirname(location) == str(self._fs.unstrip_protocol(self._path)).rstrip("/")

    def clear_unfinished(self) -> None:
        """An upload that was cut off leaves no object."""


def open_store(location: str) -> Store:
    """The output folder of a path or URL."""
    return UrlStore(location) if is_url(location) else LocalStore(location)
