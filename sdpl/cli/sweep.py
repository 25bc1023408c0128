"""sdpl-sweep"""

from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import MAX_PIXELS, PATH
from sdpl.errors import Stopped


@click.command("sweep", cls=Command)
@MAX_PIXELS
@click.argument("sweep", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the runs, the table and the curves.")
def command(sweep: Path, out: Path) -> None:
    """Train every method of SWEEP (YAML) at every proportion of known labels with every seed; one table at the end.

    Finished runs are not repeated: the same command goes on after a stop. Writes OUT/results.json, OUT/table.md and
    curves over the proportions as PNG.
    """
    from sdpl.cli.tables import show
    from sdpl.train.config_files import read_sweep
    from sdpl.train.sweep import run_sweep
    from sdpl.train.sweep_report import table, write_results

    config = read_sweep(sweep)
    try:
        with shown() as report:
            results = run_sweep(config, out, report)
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; the same command goes on with what is left in {out}.") from None
    write_results(results, config.figures, out)
    show(table(results, f"{len(results)} runs, test split, percent"))
