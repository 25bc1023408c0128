"""sdpl-info"""

import json
from pathlib import Path

import click

from sdpl.cli.command import Command
from sdpl.cli.options import DEVICE, PATH


@click.command("info", cls=Command)
@click.argument("bundle", type=PATH, required=False)
@click.option("--weights", type=PATH, help="Say what this file of encoder weights is, for model.weights.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@DEVICE
def command(bundle: Path | None, weights: Path | None, as_json: bool, device: int | None) -> None:
    """What runs on this machine, what is missing, and whether the targets of BUNDLE fit it."""
    if weights is not None:
        _describe_weights(weights, as_json)
        return
    from sdpl.bundle import Bundle
    from sdpl.cli.tables import show
    from sdpl.kernels.gpu import named_device
    from sdpl.runtime.environment import describe
    from sdpl.runtime.tables import environment_table, target_states, target_table

    opened, found, number = Bundle.open(bundle) if bundle else None, describe(device), named_device(device)
    if as_json:
        states = target_states(opened, number) if opened else {}
        click.echo(json.dumps({"environment": found, "targets": states}, indent=2))
        return
    show(environment_table(found))
    if opened:
        show(target_table(opened, number))


def _describe_weights(path: Path, as_json: bool) -> None:
    from sdpl.train.model.weights_info import describe_weights

    found = describe_weights(path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        click.echo(f"{key:16} {value}")
