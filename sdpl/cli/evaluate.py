"""sdpl-eval"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import (
    DEVICE,
    FORMAT,
    IMAGES,
    JSON_PATH,
    MAX_PIXELS,
    PAGE,
    PATH,
    Number,
    RunOptions,
    runtime_options,
)
from sdpl.errors import UserError

if TYPE_CHECKING:
    from sdpl.data.images import LabelledImages
    from sdpl.evaluate.evaluation import Evaluated, Evaluation
    from sdpl.evaluate.report.html import Compared


@click.command("eval", cls=Command)
@click.argument("model", type=PATH)
@click.argument("annotations", type=PATH)
@IMAGES
@FORMAT
@MAX_PIXELS
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--threshold", type=Number(0, 1), help="For F1.  [default: the model's own, or 0.5]")
@click.option("--skip-unreadable", is_flag=True, help="Name unreadable images and leave them out, instead of stopping.")
@click.option("--json", "json_path", type=JSON_PATH, help="Also write the metrics to this file.")
@click.option("--report", "page", type=PAGE, help="Also write an HTML page: curves, the worst errors and more.")
@click.option(
    "--compare", type=PATH, multiple=True, help="Another model beside MODEL in the page, or what --json wrote of it."
)
@runtime_options
@DEVICE
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
    run: RunOptions,
    device: int | None,
    worst: int,
) -> None:
    """Metrics of MODEL (model.ckpt or model.sdpl) on the labels of ANNOTATIONS: COCO, VOC or a table."""
    from sdpl.cli.tables import show
    from sdpl.data.formats import read_labels
    from sdpl.data.reading import Unreadable
    from sdpl.evaluate.evaluation import evaluate, read_evaluation, score_all
    from sdpl.evaluate.tables import evaluation_tables
    from sdpl.files import write_json
    from sdpl.models import open_model
    from sdpl.train.log import read_csv

    if compare and page is None:
        raise UserError("--compare shows other models in the page: add --report FILE.html.")
    if page is not None:
        from sdpl.evaluate.report.html import write_report  # before hours of scoring, should it not be installed
    opened = open_model(model, threshold, **run, device=device)
    click.echo(f"target: {opened.target}", err=True)
    others = [(p, read_evaluation(p) if p.suffix == ".json" else open_model(p, threshold)) for p in compare]
    data = read_labels(annotations, images, format, opened.categories)
    with shown() as report:
        unreadable = Unreadable("skip" if skip_unreadable else "stop", report, "--skip-unreadable leaves it out.")
        scores = score_all(opened.scores, data, opened.reading(), batch, report, unreadable)
    data = data.without(unreadable.images)
    result = evaluate(scores, data, opened.thresholds)
    for table in evaluation_tables(result):
        show(table)
    if json_path is not None:
        write_json(json_path, {**asdict(result), "target": opened.target})
    if page is not None:
        compared = [_compared(path, other, data, batch) for path, other in others]
        with shown("drawing the report"):
            log = read_csv(model.parent / "log.csv")
            write_report(page, str(model), str(annotations), opened, data, scores, result, worst, compared, log)
        click.echo(f"report: {page}")


def _compared(path: Path, other: "Evaluated | Evaluation", data: "LabelledImages", batch: int) -> "Compared":
    """Another model's scores and metrics of the same data, or only metrics. Raises UserError for other categories."""
    from sdpl.data.formats import in_order
    from sdpl.evaluate.evaluation import Evaluation, evaluate, require_same_data, score_all
    from sdpl.evaluate.report.cases import ScoredModel
    from sdpl.evaluate.report.html import Compared

    name = str(path)
    if isinstance(other, Evaluation):
        require_same_data(other, data, name)
        return Compared(name, other)
    own = in_order(data, other.categories, f"--compare {path}")
    with shown() as report:
        scores = score_all(other.scores, own, other.reading(), batch, report)
    columns = [other.categories.index(category) for category in data.categories]
    return Compared(name, evaluate(scores, own, other.thresholds), ScoredModel(name, other, scores[:, columns]))
