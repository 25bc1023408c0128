"""Checks of data as tables."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from sdpl.data.check import DataCheck
from sdpl.text import escaped, printable, shortened

SHOWN = 10  # items of a finding; --json has them all


def check_tables(result: DataCheck) -> Iterator[Table | Text]:
    """The label counts of each split, then the findings, each with its first items."""
    for split, rows in result.counts.items():
        table = Table(title=f"{escaped(split)}: {result.images[split]} images")
        table.add_column("category", overflow="fold")
        for name in ("known", "positive", "negative", "unknown"):
            table.add_column(name, justify="right")
        total = [sum(getattr(r, name) for r in rows) for name in ("known", "positive", "negative", "unknown")]
        for row in rows:
            table.add_row(escaped(row.category), *map(str, (row.known, row.positive, row.negative, row.unknown)))
        table.add_section()
        table.add_row("all", *map(str, total))
        yield table
    for finding in result.findings:
        level, style = ("problem", "red") if finding.is_problem else ("warning", "yellow")
        yield Text.assemble((level, style), f": {finding.what}: {len(finding.items)}")
        where = [f"in {finding.split}"] if finding.split else []
        more = len(finding.items) - SHOWN
        lines = [*where, *finding.items[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        for line in lines:  # paths stay whole, to be copied
            yield Text(f"  {printable(shortened(line))}", no_wrap=True, overflow="ignore")
