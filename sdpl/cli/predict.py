"""sdpl-predict"""

from pathlib import Path

import click

from sdpl.cli.command import Command
from sdpl.cli.options import MAX_PIXELS, PATH, runtime_options, say_target
from sdpl.errors import UserError


@click.command("predict", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print every score as JSON, one line per image.")
@click.option("--top", type=click.IntRange(min=1), help="Print the K best categories instead of those above threshold.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="For all categories.  [default: the bundle's own]")
@click.option("--attention", type=PATH, help="Draw where the model looked, one PNG per image, into this folder.")
@MAX_PIXELS
@runtime_options
def command(
    bundle: Path,
    images: tuple[Path, ...],
    as_json: bool,
    top: int | None,
    threshold: float | None,
    attention: Path | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    streams: int | None,
) -> None:
    """Labels and scores of IMAGES (files or folders). Unreadable images are named; the others are still done."""
    from sdpl.preprocess import find_images
    from sdpl.runtime import Recognizer
    from sdpl.runtime.predict import attention_names, draw, predict

    paths = find_images(list(images))
    failed = 0
    with Recognizer.open(bundle, backend, threads, streams, precision) as recognizer:
        say_target(recognizer)
        predictions = predict(recognizer, paths, threshold, with_attention=attention is not None)
        for prediction, name in zip(predictions, attention_names(paths), strict=True):
            if isinstance(prediction, UserError):
                click.echo(f"error: {prediction}", err=True)
                failed += 1
                continue
            click.echo(prediction.to_json() if as_json else prediction.to_line(top))
            if attention is not None:
                draw(prediction, top or 3, attention / name)
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read.")
