"""sdpl-train"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import MAX_PIXELS, PAGE, PATH
from sdpl.errors import Stopped, UserError

HEARD_S = 2  # that a process waits which does not speak: when it ends, torchrun ends the others


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of the processes that torchrun started together one tells what is wrong; the others end without a word."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from sdpl.train.distributed import speaks

                if is_silent := not speaks():
                    time.sleep(HEARD_S)
            except KeyboardInterrupt:  # torchrun ends this process, since another one has spoken and ended
                is_silent = True
            if is_silent:
                raise click.exceptions.Exit(2) from None
        raise


@click.command("train", cls=Command)
@MAX_PIXELS
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for checkpoints and log; made if missing.")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.ckpt.")
@click.option("--init", type=PATH, help="Start a new run from this checkpoint's weights; its categories may differ.")
@click.option("--report", "page", type=PAGE, help="Also write the run as an HTML page: curves, AP, attention.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for a key of CONFIG, such as train.lr=0.01; may be repeated.",
)
@_one_voice()
def command(
    config: Path, out: Path, resume: bool, init: Path | None, page: Path | None, settings: tuple[str, ...]
) -> None:
    """Train as CONFIG (YAML) says; writes OUT/model.ckpt (as train.keep says), OUT/last.ckpt and OUT/log.csv."""
    if resume and init is not None:
        raise UserError("--init starts a new run and --resume goes on with one: leave out one of them.")
    if page is not None:
        from sdpl.evaluate.report import page as _  # noqa: F401, before hours of training, should it not be installed
    try:
        from sdpl.train.config_files import read_config

        checked = read_config(config, settings)
        from sdpl.train.loop import train  # PyTorch, which takes seconds: what is wrong with CONFIG is said before

        with shown() as report:
            checkpoint = train(checked, out, resume, report, init=init, page=page)
    except KeyboardInterrupt:
        kept = (out / "last.ckpt").exists()
        fix = f"add --resume to go on from the last checkpoint in {out}" if kept else "no epoch was finished"
        raise Stopped(f"interrupted; {fix}.") from None
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one says it
        click.echo(f"checkpoint: {checkpoint}")
        if page is not None:
            click.echo(f"report: {page}")
