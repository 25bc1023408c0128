"""sdpl: all commands under one name."""

import click

from sdpl import __version__
from sdpl.cli import bench, data, demo, evaluate, export, info, predict, score, serve, sweep, train, verify
from sdpl.cli.command import Group


@click.group("sdpl", cls=Group)
@click.version_option(__version__, prog_name="sdpl")
def command() -> None:
    """Multi-label image recognition with partial labels, from training to production."""


for module in (train, sweep, export, evaluate, predict, score, bench, serve, verify, info, demo, data):
    command.add_command(module.command)
