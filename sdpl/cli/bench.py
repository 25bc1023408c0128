"""sdpl-bench"""

from pathlib import Path

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import DEVICE, JSON_FILE, PATH, Number, numbers, runtime_options
from sdpl.errors import UserError


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
    backend: str,
    precision: str | None,
    threads: int | None,
    streams: int | None,
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
    from sdpl.cli.tables import show
    from sdpl.files import write_json
    from sdpl.runtime.bench import benchmark_bundle
    from sdpl.runtime.tables import latency_table

    if plot is not None:
        from sdpl.plots import draw_latencies, pyplot

        pyplot()  # says before the measuring that matplotlib is missing
    sizes, threads_at_once = numbers("--batch", batches), numbers("--callers", callers)
    if url is not None:
        sent = [float(rate) for rate in numbers("--rates", rates, most=1_000_000)] if rates else []
        from sdpl.server.options import token as read_token

        token = read_token(token_file)
        direct = (bundle, backend, precision, threads, streams, device, sizes)
        _server(url, model, threads_at_once, sent, seconds, kind == "jpeg", token, direct, json_path, plot)
        return
    if bundle is None:
        raise UserError("give a BUNDLE to measure, or the --url of a server.")
    sides = {}
    if against is not None:
        from sdpl.train.pytorch_scorers import pytorch_scorers

        sides = pytorch_scorers(against)
    with shown("measuring") as report:
        result = benchmark_bundle(
            bundle, backend, threads, sizes, threads_at_once, seconds, sides, report, streams, precision, device
        )
    show(latency_table(result))
    click.echo(f"target: {result['target']} ({result['chosen']})")
    for target, obstacle in result["skipped"].items():
        click.echo(f"skipped {target}: {obstacle}")
    if not all(row["stable"] for row in result["latencies"]):
        click.echo("not stable: rows marked * spread or drift by more than 10 %; quiet the machine and repeat.")
    if json_path is not None:
        write_json(json_path, result)
    if plot is not None:
        draw_latencies(result, plot)


def _server(
    url: str,
    model: str | None,
    callers: list[int],
    rates: list[float],
    seconds: float,
    encoded: bool,
    token: str | None,
    direct: tuple[Path | None, str, str | None, int | None, int | None, int | None, list[int]],
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Measure a server, and the bundle itself beside it where one was given."""
    from sdpl.cli.tables import show
    from sdpl.files import write_json
    from sdpl.runtime.bench import benchmark_bundle
    from sdpl.runtime.tables import latency_table
    from sdpl.server.load import measure_server
    from sdpl.server.load_table import draw_loads, load_table

    bundle, backend, precision, threads, streams, device, sizes = direct
    with shown("measuring") as report:
        result = measure_server(url, model, callers, rates, seconds, encoded, token, report)
        if bundle is not None:
            result["direct"] = benchmark_bundle(
                bundle, backend, threads, sizes, [1], seconds, None, report, streams, precision, device
            )
    show(load_table(result))
    if bundle is not None:
        show(latency_table(result["direct"]))
    if json_path is not None:
        write_json(json_path, result)
    if plot is not None:
        draw_loads(result, plot)
