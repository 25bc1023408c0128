"""sdpl-info"""

import json
from pathlib import Path

import click

from sdpl.cli.command import Command
from sdpl.cli.options import PATH


@click.command("info", cls=Command)
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(bundle: Path | None, as_json: bool) -> None:
    """What runs on this machine, what is missing, and whether the targets of BUNDLE fit it."""
    from rich.console import Console

    from sdpl.bundle import Bundle
    from sdpl.runtime.environment import describe
    from sdpl.runtime.tables import environment_table, target_states, target_table

    opened = Bundle.open(bundle) if bundle else None
    if as_json:
        states = target_states(opened) if opened else {}
        click.echo(json.dumps({"environment": describe(), "targets": states}, indent=2))
        return
    Console().print(environment_table(describe()))
    if opened:
        Console().print(target_table(opened))
