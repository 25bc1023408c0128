"""sdpl-verify"""

from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import PATH
from sdpl.errors import UserError


@click.command("verify", cls=Command)
@click.argument("bundle", type=PATH)
def command(bundle: Path) -> None:
    """Repeat BUNDLE's proof on this machine: every target that runs here against PyTorch's scores on its images.

    The results go into the manifest.
    """
    from sdpl.bundle import Verification
    from sdpl.runtime.verify import verify
    from sdpl.verification import describe

    def say(name: str, result: Verification | str) -> None:
        line = describe(result) if isinstance(result, Verification) else f"not run: {result}"
        click.echo(f"{name}: {line}")

    with shown("running the proof"):
        results = verify(bundle, say)
    if not any(isinstance(result, Verification) for result in results.values()):
        raise UserError("nothing was verified: no target of the bundle runs here.")
