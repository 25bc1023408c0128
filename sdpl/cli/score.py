"""sdpl-score"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdpl.cli.command import Command
from sdpl.cli.options import PATH, Number, RunOptions, runtime_options
from sdpl.errors import UserError

if TYPE_CHECKING:
    from sdpl.scale.score import Engine, Status, Watch

EVERY_S = 5.0  # between lines of progress, where there is no terminal


@click.command("score", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder or URL of the Parquet files; the same again goes on with the job.")
@click.option("--recursive", is_flag=True, help="Look into the folders of folders too.")
@click.option(
    "--keep", default="all", show_default=True, metavar="all|top:K|threshold[:T]", help="What of an image's scores."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Of what is kept."
)
@click.option("--embeddings", is_flag=True, help="Also keep each image's embedding: the mean of its map, unit length.")
@click.option(
    "--shard-size",
    type=click.IntRange(1, 1 << 31),
    default=10_000,
    show_default=True,
    help="Image files to one output file.",
)
@click.option("--image-column", help="Of Parquet inputs: encoded images or paths.  [default: usual names]")
@click.option("--key-column", help="Of Parquet inputs.  [default: usual names]")
@click.option("--batch", type=click.IntRange(1, 1024), help="Images per call of the model.  [default: the backend's]")
@click.option("--ray", "address", help="Score on a Ray cluster: its address, auto, or local for one on this machine.")
@click.option("--workers", type=click.IntRange(min=1), help="On Ray.  [default: one per GPU, else one per machine]")
@click.option("--tries", type=click.IntRange(min=1), default=3, show_default=True, help="Of an unreadable shard.")
@click.option(
    "--image-timeout",
    type=Number(0.1),
    default=120,
    show_default=True,
    help="Seconds for decoding one image.",
)
@click.option("--price-per-hour", type=Number(min=0), help="Of one machine: estimates what a billion costs.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and summary as JSON, one object per line.")
@runtime_options
@click.option(
    "--device", metavar="N,N|all", help="The GPUs' numbers, as sdpl-info lists them, or all.  [default: the first]"
)
def command(
    bundle: Path,
    inputs: tuple[str, ...],
    out: str,
    recursive: bool,
    keep: str,
    dtype: str,
    embeddings: bool,
    shard_size: int,
    image_column: str | None,
    key_column: str | None,
    batch: int | None,
    address: str | None,
    workers: int | None,
    tries: int,
    image_timeout: float,
    price_per_hour: float | None,
    as_json: bool,
    run: RunOptions,
    device: str | None,
) -> None:
    """Score INPUTS of any number with BUNDLE, and write Parquet files.

    INPUTS are images, folders, globs, lists of paths (@list.txt, or - for standard input), tar files (WebDataset
    shards), Parquet files with images or paths, and URLs such as s3://bucket/prefix. Stopped in any way, the same
    command goes on: finished files are kept, and every image is scored exactly once.
    """
    from functools import partial

    from sdpl.supervised import supervise

    if not out:
        raise UserError("--out '' is empty: name a folder, or . for this one.")
    if workers is not None and address is None:
        raise UserError("--workers is for --ray; one process uses all cores of this machine.")
    if device is not None and address is not None:
        raise UserError("--device is for one process; Ray gives each worker a GPU of its own.")
    journal = supervise(tries, "-" in inputs) if address is None else None  # before anything that a fork would harm

    from sdpl.scale import OneProcess, Options, Settings, score
    from sdpl.scale.devices import parse_devices
    from sdpl.scale.tables import summary_lines

    settings = Settings(keep, dtype, shard_size, image_column, key_column, embeddings or None)
    options = Options(
        str(bundle),
        out,
        **run,
        batch_size=batch,
        settings=settings,
        devices=parse_devices(device),
        image_timeout_s=image_timeout,
    )
    engine: Callable[[Options], Engine] = partial(OneProcess, journal=journal)
    if address is not None:
        from sdpl.scale.ray_engine import RayEngine

        engine = partial(RayEngine, address=address, workers=workers)
    watch, done = _json_lines() if as_json else _bar()
    try:
        summary = score(
            options,
            inputs,
            recursive=recursive,
            engine=engine,
            tries=tries,
            price_per_hour=price_per_hour,
            watch=watch,
        )
    finally:
        done()
    if as_json:
        click.echo(json.dumps({"event": "summary", **summary.to_dict()}))
    else:
        click.echo("\n".join(summary_lines(summary, out)))
    for failure in summary.failures.values():
        click.echo(f"failed: {failure}", err=True)
    if summary.failures:
        raise UserError(
            f"{len(summary.failures)} of {summary.shards} shards failed; the same command tries them again."
        )
    if summary.counts.images and summary.counts.bad == summary.counts.images:
        raise UserError(
            f"no image of {out} could be read: its column `error` says why. Once that is fixed, delete {out} or "
            "take another --out."
        )


def _json_lines() -> "tuple[Watch, Callable[[], None]]":
    """A line of progress every few seconds, and when a shard ends."""
    last, ended = 0.0, -1

    def watch(status: "Status", engine: "Engine") -> None:
        nonlocal last, ended
        now, over = time.monotonic(), status.shards_done + len(status.failures)
        if over != ended or now - last >= EVERY_S:
            last, ended = now, over
            click.echo(json.dumps({"event": "progress", **status.to_dict(engine)}))

    return watch, lambda: None


def _bar() -> "tuple[Watch, Callable[[], None]]":
    """A bar on a terminal; elsewhere a line every few seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from sdpl.scale.tables import status_line

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console,
        transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bars.add_task("opening", total=None)
    bars.start()
    last = time.monotonic()

    def watch(status: "Status", engine: "Engine") -> None:
        nonlocal last
        line = status_line(status, engine)
        bars.update(task, completed=status.shards_done, total=status.shards, description=line)
        if not console.is_terminal and time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            click.echo(f"shards {status.shards_done}/{status.shards}, {line}", err=True)

    return watch, bars.stop
