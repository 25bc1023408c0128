"""The user's own table, CSV, JSONL or Parquet: one row per image.

A row has the image's path (in a column of `IMAGE_COLUMNS`), and either a column per category with 1 (present), -1
(absent), 0 or blank (unknown), or the columns `positives` and `negatives` with lists of category names (in CSV divided
by `|`); what neither list names is unknown.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdpl.data.formats.bounds import MAX_BYTES, require_room
from sdpl.errors import UserError, listed, nearest
from sdpl.parquet import MAX_CELL, require_bounded, table_rows, text_columns
from sdpl.text import counted, divided

if TYPE_CHECKING:
    from pyarrow import DataType

IMAGE_COLUMNS = ("image", "image_path", "path", "file_name", "filename", "file")
MEANING: dict[float, int] = {1: 1, -1: -1, 0: 0}  # what a column's numbers mean: present, absent, unknown
MAX_LINE = 16 << 20  # bytes of a line of JSONL, characters of a header of CSV
LISTS = {"positives": 1, "negatives": -1}

Rows = Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]  # each row with its place, such as "labels.csv:12"


def read_table(
    rows: Rows,
    path: Path,
    images: Path | None,
    categories: tuple[str, ...] | None,
    values: dict[float, int] | None = None,
) -> tuple[Path, list[str], np.ndarray, tuple[str, ...]]:
    """A reader of `sdpl.data.formats`. Images are looked for from the table's folder.

    Without `categories`, all other columns are categories, in their order, or those that the lists name, in
    alphabetical order. With them, other columns are skipped, but a list may name no others. values: what the numbers in
    the columns mean, {number: 1, -1 or 0}; by default themselves.
    """
    column = {name: i for i, name in enumerate(categories or ())}
    names, labels, by_lists = [], [], False
    columns: set[str] = set()
    for where, cells in rows(path):
        names.append(_image(cells, where))
        if LISTS.keys() & cells.keys():
            by_lists = True
            row = _from_lists(cells, where)
            _require_known(row, categories, where)
        else:
            row = _from_columns(cells, categories, where, values or MEANING)
            columns |= cells.keys()
        for name in row:
            column.setdefault(name, len(column))
        require_room(path, len(names), len(column))
        labels.append(np.zeros(len(column), dtype=np.int8))  # [C so far]
        for name, label in row.items():
            labels[-1][column[name]] = label
    if not names:
        raise UserError(f"{path}: has no rows.")
    if not column:
        raise UserError(f"{path}: has no category: neither columns beside the image, nor 'positives' and 'negatives'.")
    missing = [name for name in categories or () if name not in columns]
    if missing and not by_lists:
        hint = nearest(missing[0], columns) if len(missing) == 1 else f"it has {listed(sorted(columns), 12)}"
        raise UserError(f"{path}: has no column for {counted(len(missing))}: {listed(missing)}; {hint}")
    matrix = np.zeros((len(names), len(column)), dtype=np.int8)  # [N,C]
    for i, known in enumerate(labels):
        matrix[i, : len(known)] = known
    order = sorted(column) if by_lists and categories is None else list(column)
    return path.parent if images is None else images, names, matrix[:, [column[n] for n in order]], tuple(order)


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV file with a header; divided by comma, semicolon or tab, whichever the header has most of."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline(MAX_LINE)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=header.count), strict=True)
            columns = [name.strip() for name in next(reader, [])]
            _require_header(columns, path)
            for cells in reader:
                if len(cells) not in (0, len(columns)):
                    raise UserError(f"{path}:{reader.line_num}: has {len(cells)} cells, the header {len(columns)}.")
                if cells:
                    yield f"{path}:{reader.line_num}", dict(zip(columns, cells, strict=True))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as CSV UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: is not CSV ({error}).") from None


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object per line."""
    with open(path, "rb") as stream:
        for number, line in enumerate(iter(partial(stream.readline, MAX_LINE), b""), 1):
            if len(line) == MAX_LINE:
                raise UserError(f"{path}:{number}: the line has more than {MAX_LINE >> 20} MB.")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: is not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}:{number}: expected an object such as {{"image": "a.jpg", "cat": 1}}.')
            yield f"{path}:{number}", row


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, read a bounded part at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with open(path, "rb") as stream, ParquetFile(stream) as file:  # pyarrow opens no name that is not UTF-8
            _require_header(file.schema_arrow.names, path)
            odd = {column.name: f"a {column.type}" for column in file.schema_arrow if not _is_plain(column.type)}
            plain = [name for name in file.schema_arrow.names if name not in odd]
            require_bounded(file.metadata, plain, str(path), MAX_CELL, MAX_BYTES)
            texts = text_columns(file, plain)
        with open(path, "rb") as stream, ParquetFile(stream, read_dictionary=texts) as file:
            for number, row in enumerate(table_rows(file, plain, str(path)), 1):
                yield f"{path}, row {number}", {**row, **odd}  # refused only where it is used
    except UserError:
        raise
    except (ArrowException, ValueError, OverflowError, OSError) as error:  # ValueError: text that is not UTF-8
        raise UserError(f"{path}: is not Parquet ({(str(error).splitlines() or ['damaged'])[0]}).") from None


def _is_plain(kind: "DataType") -> bool:
    """Whether a column of Parquet holds what a table may: numbers, text, nothing, or lists of text."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    plain = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_null,
    )
    return any(check(kind) for check in plain)


def write_table(path: Path, format: str, names: list[str], labels: np.ndarray, categories: tuple[str, ...]) -> None:
    """Write a table that `read_table` reads: a column per category, unknown labels blank in CSV and 0 elsewhere.

    format: csv, jsonl or parquet. names: of the images, [N]; labels: int8 [N,C].
    """
    taken = [name for name in categories if name in ("image", *LISTS)]
    if taken:
        raise UserError(f"a table cannot have a category called {taken[0]!r}: that column has another meaning.")
    if format == "parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {name: labels[:, c] for c, name in enumerate(categories)}
        with open(path, "wb") as file:
            parquet.write_table(pyarrow.table({"image": names, **columns}), file)
        return
    with open(path, "w", encoding="utf-8", newline="") as stream:
        if format == "jsonl":
            for name, row in zip(names, labels.tolist(), strict=True):
                stream.write(json.dumps({"image": name, **dict(zip(categories, row, strict=True))}) + "\n")
            return
        writer = csv.writer(stream)
        writer.writerow(["image", *categories])
        for name, row in zip(names, labels.tolist(), strict=True):
            writer.writerow([name, *(label or "" for label in row)])


def _require_header(columns: list[str], path: Path) -> None:
    if not any(name in IMAGE_COLUMNS for name in columns):
        have = f"it has {listed(columns)}" if columns else "the file is empty"
        raise UserError(f"{path}: has no column {' or '.join(map(repr, IMAGE_COLUMNS))}; {have}.")
    if "" in columns:
        raise UserError(f"{path}: column {columns.index('') + 1} has no name (pandas: to_csv(..., index=False)).")
    twice = sorted(name for name, times in Counter(columns).items() if times > 1)
    if twice:
        raise UserError(f"{path}: a column appears twice: {listed(twice)}; each must be unique.")


def _image_column(cells: dict[str, Any]) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in cells), None)


def _image(cells: dict[str, Any], where: str) -> str:
    column = _image_column(cells)
    name = None if column is None else cells[column]
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{where}: names no image; expected a path in {' or '.join(map(repr, IMAGE_COLUMNS))}.")
    return name.strip()


def _from_columns(
    cells: dict[str, Any], categories: tuple[str, ...] | None, where: str, values: dict[float, int]
) -> dict[str, int]:
    image = _image_column(cells)
    chosen = [name for name in cells if name != image] if categories is None else [n for n in categories if n in cells]
    return {name: _label(cells[name], name, where, values) for name in chosen}


def _label(value: Any, name: str, where: str, values: dict[float, int]) -> int:
    number = value
    if isinstance(value, str):
        try:
            number = float(value) if value.strip() else None
        except ValueError:
            number = math.nan
    elif isinstance(value, float) and math.isnan(value):
        number = None
    if number is None:  # blank is unknown, whatever the numbers mean
        return 0
    if isinstance(number, bool) or not isinstance(number, int | float) or number not in values:
        raise UserError(
            f"{where}: {name} = {value!r}: expected {_written(values)}; if this column is no category, name "
            "the categories in data.categories; if its numbers mean something else, say what in data.values."
        )
    return values[number]


def _written(values: dict[float, int]) -> str:
    """The numbers and what they mean: "1 (present), -1 (absent), 0 or blank (unknown)"."""
    numbers = {label: f"{number:g}" for number, label in values.items()}
    unknown = f", {numbers[0]} or blank (unknown)" if 0 in numbers else " or blank (unknown)"
    return f"{numbers[1]} (present), {numbers[-1]} (absent){unknown}"


def _from_lists(cells: dict[str, Any], where: str) -> dict[str, int]:
    known: dict[str, int] = {}
    for key, label in LISTS.items():
        names = cells.get(key) or []
        if isinstance(names, str):
            names = divided(names)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: {key} = {names!r}: expected a list of category names.")
        for name in names:
            if known.setdefault(name, label) != label:
                raise UserError(f"{where}: {name!r} appears in both lists, positives and negatives.")
    return known


def _require_known(known: dict[str, int], categories: tuple[str, ...] | None, where: str) -> None:
    if categories is None:
        return
    odd = [name for name in known if name not in categories]
    if odd:
        hint = nearest(odd[0], categories)
        raise UserError(f"{where}: {listed(odd)}: no category of the model or of data.categories; {hint}")
