"""sdpl-verify"""

from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import DEVICE, PATH
from sdpl.errors import UserError


@click.command("verify", cls=Command)
@click.argument("bundle", type=PATH)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Only this target; may be repeated.")
@DEVICE
def command(bundle: Path, targets: tuple[str, ...], device: int | None) -> None:
    """Repeat BUNDLE's proof on this machine: every target that runs here against PyTorch's scores on its images.

    Exit status 0 only when all that can run here gave PyTorch's answers and no target's files are missing or changed.
    The results go into the manifest, where it can be written. Each is timed too, which decides what --backend auto
    takes on this machine.
    """
    from sdpl.bundle import Bundle
    from sdpl.kernels.gpu import named_device
    from sdpl.manifest import Verification
    from sdpl.runtime.backends import Wanted, candidates
    from sdpl.runtime.timings import timings
    from sdpl.runtime.verify import Failed, Result, verify
    from sdpl.verification import describe

    def say(name: str, result: Result) -> None:
        if isinstance(result, Failed):
            click.echo(f"{name}: FAILED: {result.reason}")
        else:
            click.echo(f"{name}: {describe(result) if isinstance(result, Verification) else f'not run: {result}'}")

    def not_recorded(reason: UserError) -> None:
        click.echo(f"warning: {reason}", err=True)

    with shown("running the proof"):
        results = verify(bundle, say, targets, device, not_recorded)
    if not any(isinstance(result, Verification) for result in results.values()):
        which = "none of these targets" if targets else "no target of the bundle"
        raise UserError(f"nothing was verified: {which} runs here.")
    opened, number = Bundle.open(bundle), named_device(device)
    for name, timing in timings(opened, number).items():
        click.echo(f"{name}: {timing}")
    ordered, _, _ = candidates(opened, Wanted(device=number))
    passed = (name for name in ordered if isinstance(results.get(name), Verification))
    first = None if targets else next(passed, None)
    if first:
        click.echo(f"auto takes {first} here; --precision allows less exact ones")
