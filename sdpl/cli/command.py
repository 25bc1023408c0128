"""What every command does alike: errors that a user can fix end in one line and exit status 2."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from sdpl.cli.entry import INTERRUPTED, STATUS_INTERRUPTED
from sdpl.cli.stops import Stops
from sdpl.cli.unforeseen import STATUS, explain
from sdpl.errors import FULL, Stopped, UserError
from sdpl.install import install_line
from sdpl.text import no_file_name

EXTRAS = {  # which extra brings a module
    "array_api_compat": "train",
    "cuda": "cuda",
    "fsspec": "score",
    "jinja2": "report",
    "ml_dtypes": "export",
    "matplotlib": "pictures",
    "msgspec": "eval",
    "onnx": "export",
    "onnxruntime": "runtime",
    "onnxscript": "export",
    "open_clip": "train",
    "openvino": "openvino",
    "platformdirs": "cuda",
    "pyarrow": "parquet",
    "ray": "ray",
    "scipy": "eval",
    "sklearn": "eval",
    "tensorboard": "tensorboard",
    "torch": "train",
    "yaml": "train",
}


class _OneLine(click.Command):
    """What click itself finds wrong with a command line is one line too, with its suggestion."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.context_settings["help_option_names"] = ["-h", "--help"]

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        if not extra.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.ClickException as error:
            status = _say(_usage(error), error.exit_code)
        except click.Abort:  # what click makes of a KeyboardInterrupt
            status = _say(INTERRUPTED, STATUS_INTERRUPTED)
        sys.exit(status)  # None is 0


class Command(_OneLine):
    """A command whose errors are one line. Status 2: the user can fix it; 130: it was stopped; 70: a fault of sdpl."""

    def invoke(self, ctx: click.Context) -> Any:
        sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks are escaped
                stream.reconfigure(errors="backslashreplace")
        stops = Stops()
        try:
            with stops:
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            if stops.arrived and not isinstance(error, KeyboardInterrupt):  # a library made another error of the stop
                error = KeyboardInterrupt()
            ctx.exit(_say(*_outcome(error, self.name or "")))
        finally:
            stops.said()


class Group(click.Group, _OneLine):
    command_class = Command


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def _say(message: str, status: int) -> int:
    with suppress(OSError):  # the terminal may be gone
        click.echo(f"error: {message}", err=True)
    return status


def _usage(error: click.ClickException) -> str:
    """The line about a command line that click refuses."""
    message = error.format_message()
    message = message[:1].lower() + message[1:]
    if not message.endswith((".", "?", ")")):
        message += "."
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" See {error.ctx.command_path} --help."
    return str(UserError(message))


def _outcome(error: BaseException, command: str) -> tuple[str, int]:
    """The line about an error, and the exit status."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is not None:
            return f"this command needs {error.name}: {install_line(extra)}", 2
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        return f"the output cannot be written ({error.strerror}): free space or choose another place.", 2
    if isinstance(error, KeyboardInterrupt):
        return (isinstance(error, Stopped) and str(error)) or INTERRUPTED, STATUS_INTERRUPTED
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        return str(UserError(no_file_name(error))), 2
    if isinstance(error, MemoryError):
        return "memory ran out: take smaller batches or images, or a machine with more of it.", 2
    return explain(error, command), STATUS
