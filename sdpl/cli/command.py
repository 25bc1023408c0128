"""What every command does alike: errors that a user can fix end in one line and exit status 2."""

import sys
from typing import Any

import click

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
    """A command whose UserErrors are printed as one line, with exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            click.echo(f"error: this command needs {error.name}: {install_line(extra)}", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)


class Group(click.Group):
    command_class = Command
