"""Tables on the terminal, of whatever width: names may be cut or folded, numbers never."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table

NAME_WIDTH = 12  # that a column of names keeps at least, where the names are as long


def show(content: RenderableType) -> None:
    """Print tables; wider than the terminal where the numbers, in columns flushed right, need it."""
    console = Console()
    console.width = max([console.width, *(_least_width(console, table) for table in _tables(content))])
    console.print(content, crop=False)


def _tables(content: RenderableType) -> Iterator[Table]:
    if isinstance(content, Table):
        yield content
    elif isinstance(content, Group):
        for part in content.renderables:
            yield from _tables(part)


def _least_width(console: Console, table: Table) -> int:
    """How wide a table has to be for its numbers, which are not cut from here on."""
    options, total = console.options.update(width=10_000), len(table.columns) + 1  # with the lines between columns
    for column in table.columns:
        sizes = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        least = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
        if column.justify == "right":
            column.min_width = max(least, column.min_width or 0)
        total += (column.min_width or min(least, NAME_WIDTH)) + table.padding[1] + table.padding[3]
    return total
