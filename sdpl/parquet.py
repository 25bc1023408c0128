"""What a Parquet file may announce, and how much of it is decoded at a time: the boundary of all its readers."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sdpl.errors import UserError

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch
    from pyarrow.parquet import FileMetaData, ParquetFile

MAX_ROWS = 100_000_000  # of a file
MAX_CELL = 16 << 20  # bytes of one text in a table, or of the names in one list
MAX_LIST = 100_000  # names in one list
STEP = 64 << 20  # bytes of a table's rows that are Python objects at a time
CELLS = 1 << 20  # of a table, decoded at a time


def require_bounded(metadata: "FileMetaData", columns: Iterable[str], where: str, row: int, total: int = 0) -> None:
    """Raise UserError when a file announces too much for the columns that are read of it.

    row: bytes of a row, decompressed, on the average of any row group. total: bytes of the file, decompressed; 0 for
    files that are read in passing, a row at a time.
    """
    if not 0 <= metadata.num_rows <= MAX_ROWS:
        raise UserError(f"{where}: announces {metadata.num_rows:,} rows, at most {MAX_ROWS:,} are read; divide it.")
    names, size = set(columns), 0
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        chunks = [group.column(c) for c in range(group.num_columns)]
        sizes = [chunk.total_uncompressed_size for chunk in chunks if _is_of(chunk.path_in_schema, names)]
        size += sum(sizes)
        if min(sizes, default=0) < 0 or sum(sizes) > max(group.num_rows, 1) * row:
            raise UserError(
                f"{where}: row group {g} announces {sum(sizes):,} bytes for {group.num_rows:,} rows, more than "
                f"{row >> 20} MiB a row."
            )
    if total and size > total:
        raise UserError(f"{where}: announces {size:,} decompressed bytes, more than {total:,}; divide it.")


def text_columns(file: "ParquetFile", columns: Iterable[str]) -> list[str]:
    """Those of a table's columns that hold text, as Parquet calls them. Read as dictionaries they hold each text once,
    as the file does."""
    names = set(columns)
    parts = (file.schema.column(c) for c in range(len(file.schema)))
    return [part.path for part in parts if part.physical_type == "BYTE_ARRAY" and _is_of(part.path, names)]


def table_rows(file: "ParquetFile", columns: list[str], where: str) -> Iterator[dict[str, Any]]:
    """The rows of a table opened with its `text_columns` as dictionaries.

    A file can name one long text in every row at the cost of a bit; so what the rows would be as Python objects is
    known before they are. Raises UserError for a text over MAX_CELL or a list over MAX_LIST.
    """
    for batch in _batches(file, columns):
        widest = [_widest(column) for column in batch.columns]
        worst = max(widest, default=0)
        if worst > MAX_CELL:
            name = columns[widest.index(worst)]
            raise UserError(
                f"{where}: a cell of column {name!r} has more than {MAX_CELL >> 20} MB or {MAX_LIST} names."
            )
        step = max(1, STEP // max(sum(widest), 1))
        for start in range(0, batch.num_rows, step):
            yield from batch.slice(start, step).to_pylist()


def _batches(file: "ParquetFile", columns: list[str]) -> "Iterator[RecordBatch]":
    """Row group by row group: pyarrow cannot join the dictionaries inside of lists."""
    rows = max(1, min(4096, CELLS // max(len(columns), 1)))
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def _widest(values: "Array") -> int:
    """At most so many bytes has the largest value; a list too long counts as more than MAX_CELL."""
    from pyarrow import compute, types

    kind = values.type
    if types.is_list(kind) or types.is_large_list(kind):
        longest = compute.max(compute.list_value_length(values)).as_py() or 0
        return MAX_CELL + 1 if longest > MAX_LIST else longest * _widest(values.values)
    if types.is_dictionary(kind):
        return _widest(values.dictionary)
    if types.is_string(kind) or types.is_large_string(kind):
        return 64 + (compute.max(compute.binary_length(values)).as_py() or 0)
    return 64


def _is_of(path: str, names: set[str]) -> bool:
    """Whether a column of the file, such as "positives.list.element", belongs to a column of the table."""
    return path in names or any(path[:i] in names for i, sign in enumerate(path) if sign == ".")
