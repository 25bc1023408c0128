"""One reader per kind of shard, behind one interface: a shard to its entries, in a fixed order."""

import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdpl.errors import UserError, listed
from sdpl.parquet import require_bounded
from sdpl.preprocess import SUFFIXES
from sdpl.scale.plan import Shard
from sdpl.scale.storage import StorageError, is_url, open_file, read_bytes, reading

MAX_BYTES = 256 << 20  # of one encoded image; larger ones are not read into memory
IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "jpeg", "png", "content", "data")
PATH_COLUMNS = ("path", "image_path", "file_name", "filename", "url", "location")
KEY_COLUMNS = ("key", "__key__", "id", "image_id")
IMAGE_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    pa.types.is_struct,
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which columns of Parquet inputs hold the image (bytes or a path) and the key; None to look for usual names."""

    image: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a shard. image: encoded bytes, or a path or URL; or what is wrong with the entry.
    source: where it lies; key: what the user calls it."""

    shard: int
    key: str
    source: str
    image: str | bytes | UserError

    def fetched(self) -> str | bytes:
        """Its encoded bytes, or a path on this machine. Raises UserError when it has none, StorageError when the
        storage failed."""
        if isinstance(self.image, UserError):
            raise self.image
        return read_bytes(self.image) if isinstance(self.image, str) and is_url(self.image) else self.image


def read_shard(shard: Shard, columns: Columns) -> Iterator[Entry]:
    """The entries of a shard, of any kind. Raises UserError, or StorageError where trying again may help."""
    return READERS[shard.kind](shard, columns)


def read_files(shard: Shard, columns: Columns) -> Iterator[Entry]:
    """Images in files of their own; the location is the key."""
    for location in shard.locations:
        yield Entry(shard.index, location, location, location)


def read_tar(shard: Shard, columns: Columns) -> Iterator[Entry]:
    """The images of a tar file (a WebDataset shard); the key is the member's name without its last suffix.

    Nothing is unpacked to disk. Other members are skipped. A file that ends too early is an error after its last whole
    image.
    """
    location = shard.locations[0]
    images = 0
    with reading(location):
        try:
            with open_file(location) as raw:
                counted: Any = _Counted(_decompressed(raw, location))
                with tarfile.open(fileobj=counted, mode="r|") as tar:
                    for member in tar:
                        if member.isfile() and member.name.lower().endswith(SUFFIXES):
                            yield _tar_entry(shard.index, location, tar, member)
                            images += 1
                    if counted.size < tar.offset + tarfile.BLOCKSIZE:  # not even the empty block that ends it
                        raise EOFError
        except (tarfile.TarError, EOFError, zlib.error) as error:
            why = f"is cut off or damaged behind {images} images" if images else f"is no tar file ({error})"
            raise StorageError(f"{location}: {why}; fetch it again.") from None


def read_parquet(shard: Shard, columns: Columns) -> Iterator[Entry]:
    """The rows of a Parquet file with encoded images, or with URLs or paths of images (from the file's folder)."""
    location = shard.locations[0]
    with reading(location):
        try:
            with open_file(location) as raw, pq.ParquetFile(raw) as parquet:
                schema = parquet.schema_arrow
                image = _image_column(schema, columns.image, location)
                key = _key_column(schema, columns.key, location)
                used = [name for name in (image, key) if name is not None]
                require_bounded(parquet.metadata, used, location, MAX_BYTES)
                row = 0
                for batch in parquet.iter_batches(1, columns=used):  # a file can name one large image in every row
                    images = batch[image].to_pylist()
                    keys = images if key is None else batch[key].to_pylist()
                    for value, name in zip(images, keys, strict=True):
                        yield _parquet_entry(shard.index, location, row, value, None if key is None else name)
                        row += 1
        except pa.ArrowInvalid as error:
            raise StorageError(f"{location}: is no Parquet file, or a damaged one ({error}); write it again.") from None


READERS: dict[str, Callable[[Shard, Columns], Iterator[Entry]]] = {
    "files": read_files,
    "tar": read_tar,
    "parquet": read_parquet,
}


class _Counted:
    """A stream that knows how much was read from it."""

    def __init__(self, stream: Any):
        self._stream, self.size = stream, 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self.size += len(data)
        return data


def _decompressed(raw: IO[bytes], location: str) -> Any:
    import gzip

    return raw if location.lower().endswith(".tar") else gzip.GzipFile(fileobj=raw)


def _tar_entry(shard: int, location: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    key, source = member.name.rpartition(".")[0], f"{location}/{member.name}"
    if member.size > MAX_BYTES:
        return Entry(shard, key, source, UserError(f"{source}: has more than {MAX_BYTES >> 20} MiB."))
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if len(data) < member.size:
        raise EOFError
    return Entry(shard, key, source, data)


def _parquet_entry(shard: int, location: str, row: int, value: Any, key: Any) -> Entry:
    source = f"{location}#{row}"
    path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
    if isinstance(value, dict):  # as Hugging Face's datasets keep images
        value = value.get("bytes") or path
    name = str(row if key is None else key)
    if key is None and path:
        name = path
    if value is None:
        return Entry(shard, name, source, UserError(f"{source}: has no image."))
    if isinstance(value, str) and not is_url(value):
        value = posixpath.join(posixpath.dirname(location), value)
    if isinstance(value, bytes) and len(value) > MAX_BYTES:
        return Entry(shard, name, source, UserError(f"{source}: has more than {MAX_BYTES >> 20} MiB."))
    return Entry(shard, name, source, value)


def _image_column(schema: pa.Schema, asked: str | None, location: str) -> str:
    names = (asked,) if asked is not None else (*IMAGE_COLUMNS, *PATH_COLUMNS)
    found = next((name for name in names if name in schema.names), None)
    if found is None:
        wanted = asked or f"an image ({', '.join(IMAGE_COLUMNS)}) or a path ({', '.join(PATH_COLUMNS)})"
        raise UserError(
            f"{location}: has no column for {wanted}; it has {listed(schema.names, 12)}. Name one: --image-column"
        )
    kind = schema.field(found).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(fits(values) for fits in IMAGE_TYPES):
        raise UserError(f"{location}: column {found!r} holds {kind}, expected images (binary) or paths (string).")
    return found


def _key_column(schema: pa.Schema, asked: str | None, location: str) -> str | None:
    if asked is not None and asked not in schema.names:
        raise UserError(f"{location}: has no column {asked!r} for keys; it has {listed(schema.names, 12)}.")
    return asked or next((name for name in KEY_COLUMNS if name in schema.names), None)
