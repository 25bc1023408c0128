"""Evaluations as tables."""

from collections.abc import Iterator

from rich.table import Table

from sdpl.evaluate.evaluation import Evaluation
from sdpl.text import escaped


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
    per_category.add_column("category", overflow="fold")
    per_category.add_column("AP", justify="right")
    for name, ap in sorted(result.ap.items(), key=lambda item: (item[1] is not None, item[1])):
        per_category.add_row(escaped(name), "no positive" if ap is None else f"{ap:.2f}")
    yield per_category
