"""sdpl-eval"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import FORMAT, IMAGES, MAX_PIXELS, PATH, runtime_options
from sdpl.errors import UserError

if TYPE_CHECKING:
    from sdpl.data.images import LabelledImages
    from sdpl.evaluate.report.html import Compared


@click.command("eval", cls=Command)
@click.argument("model", type=PATH)
@click.argument("annotations", type=PATH)
@IMAGES
@FORMAT
@MAX_PIXELS
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--threshold", type=click.FloatRange(0, 1), help="For F1.  [default: the model's own, or 0.5]")
@click.option("--skip-unreadable", is_flag=True, help="Name unreadable images and leave them out, instead of stopping.")
@click.option("--json", "json_path", type=PATH, help="Also write the metrics to this file.")
@click.option("--report", "page", type=PATH, help="Also write an HTML page: curves, the worst errors and more.")
@click.option("--compare", type=PATH, multiple=True, help="Another model beside MODEL in the page; may be repeated.")
@runtime_options
@click.option("--worst", type=click.IntRange(0, 200), default=12, show_default=True, help="Pictures per part of it.")
def command(
    model: Path,
    annotations: Path,
    images: Path | None,
    format: str,
    batch: int,
    threshold: float | None,
    skip_unreadable: bool,
    json_path: Path | None,
    page: Path | None,
    compare: tuple[Path, ...],
    backend: str,
    precision: str | None,
    threads: int | None,
    streams: int | None,
    worst: int,
) -> None:
    """Metrics of MODEL (model.ckpt or model.sdpl) on the labels of ANNOTATIONS: COCO, VOC or a table."""
    from rich.console import Console

    from sdpl.data.formats import read_labels
    from sdpl.data.reading import Unreadable
    from sdpl.evaluate.evaluation import evaluate, score_all
    from sdpl.evaluate.tables import evaluation_tables
    from sdpl.files import write_json
    from sdpl.models import open_model
    from sdpl.train.log import read_csv

    if compare and page is None:
        raise UserError("--compare shows other models in the page: add --report FILE.html.")
    if page is not None:
        from sdpl.evaluate.report.html import write_report  # before hours of scoring, should it not be installed
    opened = open_model(model, threshold, backend, threads, streams, precision)
    click.echo(f"target: {opened.target}", err=True)
    data = read_labels(annotations, images, format, opened.categories)
    with shown() as report:
        unreadable = Unreadable("skip" if skip_unreadable else "stop", report, "--skip-unreadable leaves it out.")
        scores = score_all(opened.scores, data, opened.image_size, batch, report, unreadable)
    data = data.without(unreadable.images)
    result = evaluate(scores, data, opened.thresholds)
    for table in evaluation_tables(result):
        Console().print(table)
    if json_path is not None:
        write_json(json_path, {**asdict(result), "target": opened.target})
    if page is not None:
        others = [_compared(path, data, batch, threshold) for path in compare]
        with shown("drawing the report"):
            log = read_csv(model.parent / "log.csv")
            write_report(page, str(model), str(annotations), opened, data, scores, result, worst, others, log)
        click.echo(f"report: {page}")


def _compared(path: Path, data: "LabelledImages", batch: int, threshold: float | None) -> "Compared":
    """Another model's scores and metrics of the same data. Raises UserError when its categories are others."""
    from sdpl.data.formats import in_order
    from sdpl.evaluate.evaluation import evaluate, score_all
    from sdpl.evaluate.report.html import Compared
    from sdpl.models import open_model

    other = open_model(path, threshold)
    own = in_order(data, other.categories, f"--compare {path}")
    with shown() as report:
        scores = score_all(other.scores, own, other.image_size, batch, report)
    result = evaluate(scores, own, other.thresholds)
    return Compared(str(path), scores[:, [other.categories.index(name) for name in data.categories]], result)
