"""The commands: each parses, calls one library function, and prints. A part is imported only inside the command that
needs it, so that --help is instant."""

import click

from sdpl import __version__
from sdpl.cli import bench, data, demo, evaluate, export, info, predict, score, serve, sweep, train, verify
from sdpl.cli.command import Group


@click.group(cls=Group)
@click.version_option(__version__, prog_name="sdpl")
def main() -> None:
    """Multi-label image recognition with partial labels, from training to production."""


for module in (train, sweep, export, evaluate, predict, score, bench, serve, verify, info, demo, data):
    main.add_command(module.command)
