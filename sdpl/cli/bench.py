"""sdpl-bench"""

from pathlib import Path
from typing import Any

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import DEVICE, JSON_FILE, PATH, Number, RunOptions, given, numbers, runtime_options
from sdpl.errors import UserError

FOR_SERVERS = {"rates", "model", "kind", "token_file"}


@click.command("bench", cls=Command)
@click.argument("bundle", type=PATH, required=False)
@click.option("--batch", "batches", default="1,2,4,8", show_default=True, help="Batch sizes, comma-separated.")
@click.option("--callers", default="1", show_default=True, help="Threads calling at once, comma-separated.")
@click.option("--seconds", type=Number(min=0, min_open=True), default=3.0, show_default=True, help="Per row.")
@runtime_options
@DEVICE
@click.option("--url", help="Measure a server there (http://HOST:PORT) with --callers and --rates, beside BUNDLE.")
@click.option("--rates", default="", help="Also send so many requests a second to the server, comma-separated.")
@click.option("--model", help="The server's model.  [default: its first]")
@click.option("--input", "kind", type=click.Choice(["image", "jpeg"]), default="image", show_default=True, help="Sent.")
@click.option("--token-file", type=PATH, help="The server's token.")
@click.option("--against", type=PATH, help="Also measure this checkpoint in PyTorch: eager, channels_last, compiled.")
@JSON_FILE
@click.option("--plot", type=PATH, help="Also draw throughput over latency to this PNG file.")
def command(
    bundle: Path | None,
    batches: str,
    callers: str,
    seconds: float,
    run: RunOptions,
    device: int | None,
    url: str | None,
    rates: str,
    model: str | None,
    kind: str,
    token_file: Path | None,
    against: Path | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Latency and throughput of BUNDLE: on the device, from pixels in memory, and end to end from JPEG bytes.

    With --url, of a server too: closed loops of so many callers, and open loops at given rates.
    """
    from functools import partial

    from sdpl.files import write_json
    from sdpl.runtime.bench import benchmark_bundle

    for name, option in given().items():
        if url is None and name in FOR_SERVERS:
            raise UserError(f"{option} is about a server: name it with --url.")
        if url is not None and name == "against":
            raise UserError("--against is measured beside BUNDLE alone: leave out --url.")
    if plot is not None:
        from sdpl.plots import pyplot

        pyplot()  # says before the measuring that matplotlib is missing
    sizes, threads_at_once = numbers("--batch", batches), numbers("--callers", callers)
    measure = partial(benchmark_bundle, batch_sizes=sizes, seconds=seconds, **run, device=device)
    if url is not None:
        from sdpl.server.load import measure_server
        from sdpl.server.options import token

        sent = [float(rate) for rate in numbers("--rates", rates, most=1_000_000)] if rates else []
        with shown("measuring") as report:
            found = measure_server(
                url, model, threads_at_once, sent, seconds, kind == "jpeg", token(token_file), report
            )
            if bundle is not None:
                found["direct"] = measure(bundle, callers=[1], report=report)
        present = _show_loads
    elif bundle is not None:
        sides = {}
        if against is not None:
            from sdpl.train.pytorch_scorers import pytorch_scorers

            sides = pytorch_scorers(against)
        with shown("measuring") as report:
            found = measure(bundle, callers=threads_at_once, others=sides, report=report)
        present = _show_latencies
    else:
        raise UserError("give a BUNDLE to measure, or the --url of a server.")
    if json_path is not None:
        write_json(json_path, found)
    present(found, plot)


def _show_latencies(found: dict[str, Any], plot: Path | None) -> None:
    """What was measured of a bundle."""
    from sdpl.cli.tables import show
    from sdpl.plots import draw_latencies
    from sdpl.runtime.tables import latency_table

    show(latency_table(found))
    click.echo(f"target: {found['target']} ({found['chosen']})")
    for target, obstacle in found["skipped"].items():
        click.echo(f"skipped {target}: {obstacle}")
    if not all(row["stable"] for row in found["latencies"]):
        click.echo("not stable: rows marked * spread or drift by more than 10 %; quiet the machine and repeat.")
    if plot is not None:
        draw_latencies(found, plot)


def _show_loads(found: dict[str, Any], plot: Path | None) -> None:
    """What was measured of a server, and of the bundle itself beside it where one was given."""
    from sdpl.cli.tables import show
    from sdpl.runtime.tables import latency_table
    from sdpl.server.load_table import draw_loads, load_table

    show(load_table(found))
    if "direct" in found:
        show(latency_table(found["direct"]))
    if plot is not None:
        draw_loads(found, plot)
