"""sdpl-bench"""

from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import JSON_FILE, PATH, numbers, runtime_options


@click.command("bench", cls=Command)
@click.argument("bundle", type=PATH)
@click.option("--batch", "batches", default="1,2,4,8", show_default=True, help="Batch sizes, comma-separated.")
@click.option("--callers", default="1", show_default=True, help="Threads calling at once, comma-separated.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, help="Per row.")
@runtime_options
@click.option("--against", type=PATH, help="Also measure this checkpoint in PyTorch: eager, channels_last, compiled.")
@JSON_FILE
@click.option("--plot", type=PATH, help="Also draw throughput over latency to this PNG file.")
def command(
    bundle: Path,
    batches: str,
    callers: str,
    seconds: float,
    backend: str,
    precision: str | None,
    threads: int | None,
    streams: int | None,
    against: Path | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Latency and throughput of BUNDLE: on the device, from pixels in memory, and end to end from JPEG bytes."""
    from rich.console import Console

    from sdpl.files import write_json
    from sdpl.runtime.bench import benchmark_bundle
    from sdpl.runtime.tables import latency_table

    if plot is not None:
        from sdpl.plots import draw_latencies, pyplot

        pyplot()  # says before the measuring that matplotlib is missing
    sizes, threads_at_once = numbers("--batch", batches), numbers("--callers", callers)
    sides = {}
    if against is not None:
        from sdpl.train.pytorch_scorers import pytorch_scorers

        sides = pytorch_scorers(against)
    with shown("measuring") as report:
        result = benchmark_bundle(
            bundle, backend, threads, sizes, threads_at_once, seconds, sides, report, streams, precision
        )
    Console().print(latency_table(result))
    click.echo(f"target: {result['target']} ({result['chosen']})")
    for target, obstacle in result["skipped"].items():
        click.echo(f"skipped {target}: {obstacle}")
    if not all(row["stable"] for row in result["latencies"]):
        click.echo("not stable: rows marked * spread or drift by more than 10 %; quiet the machine and repeat.")
    if json_path is not None:
        write_json(json_path, result)
    if plot is not None:
        draw_latencies(result, plot)
