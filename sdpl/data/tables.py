"""Checks of data as tables."""

from collections.abc import Iterator

from rich.table import Table

from sdpl.data.check import DataCheck
from sdpl.text import escaped

SHOWN = 10  # items of a finding; --json has them all


def check_tables(result: DataCheck) -> Iterator[Table]:
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
    if result.findings:
        table = Table(title="findings", show_lines=True)
        table.add_column("")
        table.add_column("what")
        table.add_column("split", overflow="fold")
        table.add_column("where", overflow="fold")
        for finding in result.findings:
            level = "[red]problem[/red]" if finding.is_problem else "[yellow]warning[/yellow]"
            where = "\n".join(map(escaped, finding.items[:SHOWN]))
            more = len(finding.items) - SHOWN
            where += f"\nand {more} more" if more > 0 else ""
            table.add_row(level, f"{len(finding.items)} {finding.what}", escaped(finding.split), where)
        yield table
