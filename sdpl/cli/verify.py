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

    The results go into the manifest. Each is timed too, which decides what --backend auto takes on this machine.
    """
    from sdpl.bundle import Bundle, Verification
    from sdpl.runtime.backends import Wanted, candidates
    from sdpl.runtime.timings import timings
    from sdpl.runtime.verify import verify
    from sdpl.verification import describe

    def say(name: str, result: Verification | str) -> None:
        line = describe(result) if isinstance(result, Verification) else f"not run: {result}"
        click.echo(f"{name}: {line}")

    with shown("running the proof"):
        results = verify(bundle, say)
    if not any(isinstance(result, Verification) for result in results.values()):
        raise UserError("nothing was verified: no target of the bundle runs here.")
    opened = Bundle.open(bundle)
    for name, timing in timings(opened).items():
        click.echo(f"{name}: {timing}")
    first = next(name for name in candidates(opened, Wanted())[0] if isinstance(results[name], Verification))
    click.echo(f"auto takes {first} here; --precision allows less exact ones")
