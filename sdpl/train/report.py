"""Evaluations and checks of data as tables."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from sdpl.train.check import DataCheck
from sdpl.train.evaluate import Evaluation

SHOWN = 10  # items of a finding; --json has them all


def evaluation_tables(result: Evaluation) -> Iterator[Table]:
    """The metrics in percent, then the AP of each category, worst first."""
    overall = Table(title=f"{result.images} images, percent")
    names = ["mAP", "mAP (VOC 2012)", *result.f1, *(f"{name} top-3" for name in result.f1_top3), "calibration error"]
    values = [result.mAP, result.mAP_voc2012, *result.f1.values(), *result.f1_top3.values(), result.ece]
    overall.add_column("metric")
    overall.add_column("value", justify="right")
    for name, value in zip(names, values, strict=True):
        overall.add_row(name, f"{value:.2f}")
    yield overall

    per_category = Table(title="average precision, percent")
    per_category.add_column("category")
    per_category.add_column("AP", justify="right")
    for name, value in sorted(result.ap.items(), key=lambda item: (item[1] is not None, item[1])):
        per_category.add_row(escape(name), "no positive" if value is None else f"{value:.2f}")
    yield per_category


def check_tables(result: DataCheck) -> Iterator[Table]:
    """The label counts of each split, then the findings, each with its first items."""
    for split, rows in result.counts.items():
        table = Table(title=f"{escape(split)}: {result.images[split]} images")
        table.add_column("category")
        for name in ("known", "positive", "negative", "unknown"):
            table.add_column(name, justify="right")
        total = [sum(getattr(r, name) for r in rows) for name in ("known", "positive", "negative", "unknown")]
        for row in rows:
            table.add_row(escape(row.category), *map(str, (row.known, row.positive, row.negative, row.unknown)))
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
            where = "\n".join(finding.items[:SHOWN])
            more = len(finding.items) - SHOWN
            where += f"\nand {more} more" if more > 0 else ""
            table.add_row(level, f"{len(finding.items)} {finding.what}", *map(escape, (finding.split, where)))
        yield table
