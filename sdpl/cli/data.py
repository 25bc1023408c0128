"""sdpl-data"""

from dataclasses import asdict
from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Group
from sdpl.cli.options import FORMAT, IMAGES, JSON_FILE, MAX_PIXELS, PAGE, PATH, TABLE, Number
from sdpl.errors import UserError
from sdpl.text import counted


@click.group("data", cls=Group)
def command() -> None:
    """Look at label files before training, and make partial-label sets."""


@command.command("check")
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.option("--images", type=PATH, multiple=True, help="Folder of the images, once for each of LABELS.")
@FORMAT
@JSON_FILE
@click.option("--report", "page", type=PAGE, help="Also write an HTML page: pictures of what was found, all counts.")
@MAX_PIXELS
def check_data(
    labels: tuple[Path, ...], images: tuple[Path, ...], format: str, json_path: Path | None, page: Path | None
) -> None:
    """Count labels, open every image, find copies.

    LABELS are the label files of a training set and then of its other splits, or one training configuration (.yaml).
    Counts what is known of each category, opens every image, and looks for copies of pictures within and across the
    splits. Exit status 1 if there are problems: an unreadable image, a picture in two splits, a training category of
    which nothing is known. Labels are counted as the files have them, before data.known_proportion hides any.
    """
    from sdpl.cli.tables import show
    from sdpl.data.check import check, read_splits
    from sdpl.data.tables import check_tables
    from sdpl.files import write_json

    if page is not None:
        from sdpl.evaluate.report.data import write_data_report  # before opening images, should it not be installed
    if len(labels) == 1 and labels[0].suffix in (".yaml", ".yml"):
        from sdpl.train.splits import configured_splits

        if images or format != "auto":
            raise UserError(f"{labels[0]}: says itself where its images are and of what format; leave out the options.")
        splits = configured_splits(labels[0])
    else:
        splits = read_splits(list(labels), list(images), format)
    with shown() as report:
        result = check(splits, report)
    for table in check_tables(result):
        show(table)
    if json_path is not None:
        write_json(json_path, asdict(result))
    if page is not None:
        write_data_report(page, splits, result)
        click.echo(f"report: {page}")
    click.echo(f"kinds of problems: {result.problems}, of warnings: {len(result.findings) - result.problems}")
    click.get_current_context().exit(1 if result.problems else 0)


@command.command("mask")
@click.argument("labels", type=PATH)
@click.option("--proportion", type=Number(0, 1, min_open=True), required=True, help="Of the labels, to keep.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--out", type=TABLE, required=True, help="The table to write: .csv, .jsonl or .parquet.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@IMAGES
@FORMAT
def mask_data(
    labels: Path, proportion: float, seed: int, out: Path, force: bool, images: Path | None, format: str
) -> None:
    """Hide labels at random, and write the rest as a table.

    This is the partial-label set of the field's benchmarks: each label of the images x categories matrix is kept with
    probability PROPORTION, drawn by NumPy's RandomState(SEED). The same file, proportion and seed give the same set
    everywhere, and the same labels as data.known_proportion and data.mask_seed in a configuration.
    """
    from sdpl.data.formats import read_labels, write_labels
    from sdpl.data.masks import mask_labels

    full = read_labels(labels, images, format)
    partial = full.with_labels(mask_labels(full.labels, proportion, seed))
    folder = write_labels(partial, out, force)
    known, total = int((partial.labels != 0).sum()), partial.labels.size
    click.echo(
        f"{out}: {counted(len(partial), 'image', 'images')}, {counted(len(partial.categories))}, "
        f"{known / total:.1%} of labels known"
    )
    click.echo(f"train on it with  annotations: {out}" + (f"  and  images: {folder}" if folder else ""))
