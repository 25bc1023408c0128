"""sdpl-demo"""

from pathlib import Path

import click

from sdpl.cli.command import Command
from sdpl.cli.options import PATH


@click.command("demo", cls=Command)
@click.option("--out", type=PATH, default=Path("demo-run"), show_default=True, help="Folder for everything it makes.")
def command(out: Path) -> None:
    """Train, export, verify, predict and measure on the embedded digit scenes. Finished epochs are not repeated."""
    from sdpl.demo.run import run

    run(out)
