"""sdpl-predict"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from sdpl.cli.command import Command
from sdpl.cli.options import DEVICE, MAX_PIXELS, PATH, TABLE, Number, RunOptions, runtime_options, say_target
from sdpl.errors import UserError


@click.command("predict", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("images", nargs=-1, required=True)
@click.option("--recursive", is_flag=True, help="Look into the folders of folders too.")
@click.option("--json", "as_json", is_flag=True, help="Print every score as JSON, one line per image. Not with --out.")
@click.option(
    "--top", type=click.IntRange(min=1), help="Print or draw the K best categories instead of those above threshold."
)
@click.option("--threshold", type=Number(0, 1), help="For all categories.  [default: the bundle's own]")
@click.option("--out", type=TABLE, help="Write a table of every score, .csv or .jsonl, instead of printing.")
@click.option("--save", type=PATH, help="Draw each photo beside its best scores, one PNG per image, into this folder.")
@click.option("--attention", type=PATH, help="Draw where the model looked, one PNG per image, into this folder.")
@MAX_PIXELS
@runtime_options
@DEVICE
def command(
    bundle: Path,
    images: tuple[str, ...],
    recursive: bool,
    as_json: bool,
    top: int | None,
    threshold: float | None,
    out: Path | None,
    save: Path | None,
    attention: Path | None,
    run: RunOptions,
    device: int | None,
) -> None:
    """Labels and scores of IMAGES: files, folders, globs, lists of paths (@list.txt, or - for standard input).

    Unreadable images are named; the others are still done. For millions of images: sdpl-score.
    """
    from sdpl.cli.bars import shown
    from sdpl.fonts import lacking_line
    from sdpl.progress import Steps, silent
    from sdpl.runtime import Recognizer
    from sdpl.runtime.predict import draw, picture_names, predict, require_own_places, table, to_line
    from sdpl.sources import expand

    _require_obeyed(as_json, top, out, save, attention)
    paths = [Path(path) for path in expand(images, recursive)]
    if not paths:
        raise UserError("no images: the lists are empty.")
    names = picture_names(paths)
    require_own_places(save, attention, paths, names)
    failed = 0
    with ExitStack() as stack:
        recognizer = stack.enter_context(Recognizer.open(bundle, **run, device=device))
        say_target(recognizer)
        line = lacking_line(recognizer.categories) if save is not None or attention is not None else None
        if line is not None:
            click.echo(f"warning: {line}", err=True)
        add = stack.enter_context(table(out, recognizer.categories)) if out is not None else None
        quiet = out is not None or not sys.stdout.isatty()  # a bar and lines on one terminal write over each other
        steps = Steps(stack.enter_context(shown()) if quiet else silent, "images", len(paths))
        found = predict(recognizer, paths, threshold, with_attention=attention is not None)
        for path, recognition, name in zip(paths, found, names, strict=True):
            steps.advance()
            if add is not None:
                add(path, recognition)
            if isinstance(recognition, UserError):
                click.echo(f"error: {recognition}", err=True)
                failed += 1
                continue
            if add is None:
                click.echo(json.dumps(recognition.to_dict()) if as_json else to_line(path, recognition, top))
            if attention is not None:
                draw(path, recognition, top or 3, attention / name)
            if save is not None:
                recognition.save(save / name, top or 5)
    _say_written(out, *((save, attention) if failed < len(paths) else ()))
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read.")


def _say_written(*places: Path | None) -> None:
    """On standard error, as the target is."""
    for place in places:
        if place is not None:
            click.echo(f"written: {place}", err=True)


def _require_obeyed(
    as_json: bool, top: int | None, out: Path | None, save: Path | None, attention: Path | None
) -> None:
    """Raise UserError for options that others leave without effect."""
    if as_json and out is not None:
        raise UserError("--json prints what --out writes: leave one of the two out (.jsonl holds the same lines).")
    if top is not None and (as_json or out is not None) and save is None and attention is None:
        raise UserError("--top is for printed lines and pictures; --json and --out give every score.")
