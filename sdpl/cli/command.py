"""What every command does alike: errors that a user can fix end in one line and exit status 2."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from sdpl.cli.unforeseen import STATUS, explain
from sdpl.errors import UserError
from sdpl.install import install_line

EXTRAS = {  # which extra brings a module
    "array_api_compat": "train",
    "cuda": "cuda",
    "fsspec": "score",
    "jinja2": "report",
    "ml_dtypes": "export",
    "matplotlib": "pictures",
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


class Command(click.Command):
    """A command whose errors are one line. Status 2: the user can fix it; 130: it was stopped; 70: a fault of sdpl."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks are escaped
                stream.reconfigure(errors="backslashreplace")
        try:
            with _terminated_like_interrupted():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            message, status = _outcome(error, self.name or "")
            click.echo(f"error: {message}", err=True)
            ctx.exit(status)


def _outcome(error: BaseException, command: str) -> tuple[str, int]:
    """The line about an error, and the exit status."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is not None:
            return f"this command needs {error.name}: {install_line(extra)}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written is left.", 130
    if isinstance(error, MemoryError):
        return "memory ran out: take smaller batches or images, or a machine with more of it.", 2
    return explain(error, command), STATUS


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that what is half-written is cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Group(click.Group):
    command_class = Command
