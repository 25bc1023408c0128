"""Options that several commands share, and the parsing of their values."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click
from click.core import ParameterSource

from sdpl.errors import UserError
from sdpl.text import path_problem, printable, shortened

if TYPE_CHECKING:
    from sdpl.runtime import Recognizer


class _Path(click.Path):
    """A path that can be one: without null bytes, of a length that systems take."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        problem = path_problem(str(value)) if str(value) else "is empty"
        if problem:
            self.fail(f"{shortened(printable(str(value)), 60)!r} {problem}.", param, ctx)
        return super().convert(value, param, ctx)


def _allow(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        from sdpl.preprocess import allow_pixels

        try:
            allow_pixels(value)
        except UserError as error:
            raise click.BadParameter(str(error)) from None


class Number(click.FloatRange):
    """A finite number in a range: NaN would be in every one, and every comparison with it as the user wishes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _File(_Path):
    """A file that a command writes at its end: a folder there is refused before any work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if path.is_dir():
            shown = shortened(printable(str(path)), 120)
            self.fail(f"{shown} is a folder; name a file in it, such as {shown}/{self.name_in_it}.", param, ctx)
        return path

    def __init__(self, name_in_it: str):
        super().__init__(path_type=Path)
        self.name_in_it = name_in_it


PATH = _Path(path_type=Path)
PAGE = _File("report.html")
JSON_PATH = _File("numbers.json")
TABLE = _File("table.csv")
MAX_PIXELS = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    expose_value=False,
    callback=_allow,
    help="Read images of up to so many pixels, each decoding thread in up to 12 bytes for one.  [default: 80000000]",
)
IMAGES = click.option("--images", type=PATH, help="Folder of the images.  [default: where the format keeps them]")
FORMAT = click.option(
    "--format",
    type=click.Choice(["auto", "coco", "voc", "csv", "jsonl", "parquet"]),
    default="auto",
    show_default=True,
    help="Of the label file, where its name does not say it.",
)
JSON_FILE = click.option("--json", "json_path", type=JSON_PATH, help="Also write the numbers to this file.")


BACKEND = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="A backend, a target of the bundle, or auto: the fastest here, as sdpl-verify measured.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="The least exact that may be taken.  [default: the bundle's default target's, else fp32]",
)
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Cores used on a CPU.  [default: all physical ones that it may use]"
)
STREAMS = click.option(
    "--streams",
    type=click.IntRange(min=1),
    help="Calls or parts of a batch that run at once on a CPU and share its threads, for throughput.  [default: 1]",
)


DEVICE = click.option(
    "--device", type=click.IntRange(min=0), help="The GPU's number, as sdpl-info lists them.  [default: the first]"
)


def _refuse_engines(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from sdpl.runtime.availability import refuse_engines

        refuse_engines()


NO_ENGINES = click.option(
    "--no-engines",
    is_flag=True,
    expose_value=False,
    callback=_refuse_engines,
    help="Run no built engine: they are native code. For bundles of strangers.",
)


class RunOptions(TypedDict):
    """How a bundle is run, as keywords of `Recognizer.open` and whatever else opens one."""

    backend: str
    precision: str | None
    threads: int | None
    streams: int | None


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that runs a bundle may be told; it comes to the command as one argument, `run`."""

    @functools.wraps(command)
    def gathered(
        *, backend: str, precision: str | None, threads: int | None, streams: int | None, **others: Any
    ) -> None:
        run = RunOptions(backend=backend, precision=precision, threads=threads, streams=streams)
        command(run=run, **others)

    for option in (NO_ENGINES, STREAMS, THREADS, PRECISION, BACKEND):
        gathered = option(gathered)
    return gathered


def given() -> dict[str, str]:
    """The options that this command line has, by parameter, as they are written: {"token_file": "--token-file"}."""
    context = click.get_current_context()
    return {
        option.name: option.opts[0]
        for option in context.command.params
        if isinstance(option, click.Option)
        and option.name
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }


def say_target(recognizer: "Recognizer") -> None:
    """Print what runs, on standard error: a command's results stay alone on standard output."""
    click.echo(f"target: {recognizer}", err=True)


def numbers(option: str, text: str, most: int = 1024) -> list[int]:
    """Numbers from 1 to `most`, comma-separated. Raises UserError naming the option."""
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > most:
        raise UserError(f"{option} {text!r}: expected numbers up to {most}, such as 1,8,32.")
    return found
