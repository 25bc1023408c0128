"""sdpl-serve"""

from pathlib import Path
from typing import Any

import click

from sdpl.cli.command import Command
from sdpl.cli.options import PATH, Number, RunOptions, runtime_options

MS = Number(min=0)
ONE = click.IntRange(min=1)
PORT = click.IntRange(0, 65535)
LEAST_HUNG_S = 5.0  # processes are looked at, and idle ones say that they get on, once a second


def _hung(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if 0 < value < LEAST_HUNG_S:
        raise click.BadParameter(f"{value:g} is too short to tell: 0 for never, or {LEAST_HUNG_S:g} and more.")
    return value


@click.command("serve", cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 serves every network: set a token.")
@click.option("--http-port", type=PORT, default=8000, show_default=True, help="0: any free one.")
@click.option("--grpc-port", type=PORT, default=8001, show_default=True, help="0: any free one.")
@click.option("--no-grpc", is_flag=True, help="Serve HTTP only.")
@click.option(
    "--devices",
    "--device",
    "devices",
    default="auto",
    show_default=True,
    help="One engine each: GPU numbers such as 0,1, or cpu.",
)
@click.option("--workers", default="auto", show_default=True, help="Processes that receive and decode.")
@runtime_options
@click.option("--max-batch", type=ONE, help="Largest batch.  [default: the engine's own]")
@click.option("--max-delay-ms", type=MS, default=0.0, show_default=True, help="Hold requests back for fuller batches.")
@click.option("--max-wait-ms", type=MS, default=10_000.0, show_default=True, help="Refuse what would wait longer.")
@click.option("--timeout-ms", type=MS, default=30_000.0, show_default=True, help="Of requests that name no deadline.")
@click.option("--queue-mb", type=ONE, default=256, show_default=True, help="Images in hand and their results, in MiB.")
@click.option("--max-body-mb", type=ONE, default=64, show_default=True, help="Largest request, in MiB.")
@click.option("--max-connections", type=ONE, default=1024, show_default=True)
@click.option("--drain-s", type=Number(min=0), default=30.0, show_default=True, help="To finish after SIGTERM.")
@click.option(
    "--hung-after-s",
    type=Number(min=0),
    default=60.0,
    show_default=True,
    callback=_hung,
    help="Start a process again that hangs in a photo or a batch for so long, 5 or more; 0: never.",
)
@click.option("--skip-proof", is_flag=True, help="Serve without comparing with PyTorch's scores first.")
@click.option("--allow-repository", is_flag=True, help="Let clients unload and load these models.")
@click.option("--no-watch", is_flag=True, help="Do not swap a bundle when it is replaced on disk.")
@click.option("--access-log", help="Write a JSON line for each request to this file; - is standard output.")
@click.option("--token-file", type=PATH, help="Requests must bear the token in this file.")
@click.option("--tls-certificate", type=PATH, help="PEM file; with --tls-key serves HTTPS and gRPC over TLS.")
@click.option("--tls-key", type=PATH)
@click.option("--otlp-endpoint", help="Send OpenTelemetry spans there, such as http://localhost:4318/v1/traces.")
def command(
    models: tuple[str, ...],
    grpc_port: int,
    no_grpc: bool,
    devices: str,
    workers: str,
    run: RunOptions,
    queue_mb: int,
    max_body_mb: int,
    no_watch: bool,
    token_file: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    **others: Any,
) -> None:
    """Serve BUNDLEs over HTTP and gRPC (KServe v2), with a page to try them at /.

    A model is called like its bundle without .sdpl, or NAME with NAME=BUNDLE.
    """
    from sdpl.server import options
    from sdpl.server.settings import MIB, Settings
    from sdpl.server.supervisor import Supervisor

    named, token = options.models(models), options.token(token_file)
    certificate, key = options.tls(tls_certificate, tls_key)
    settings = Settings(
        models=named,
        devices=options.devices(devices),
        workers=options.workers(workers, devices),
        grpc_port=None if no_grpc else grpc_port,
        queue_bytes=queue_mb * MIB,
        max_body=max_body_mb * MIB,
        max_json=min(max_body_mb, 16) * MIB,
        watch_s=0.0 if no_watch else 1.0,
        token=token,
        tls_certificate=certificate,
        tls_key=key,
        **run,
        **others,  # called as in the settings
    )
    if settings.access_log not in (None, "-"):
        options.writable(settings.access_log)
    options.require_packages(settings)
    if token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        click.echo(f"warning: {settings.host} is served without a token; anyone who reaches it may use it.", err=True)
    if line := options.narrower(settings):
        click.echo(line, err=True)

    def ready(served: Settings) -> None:
        click.echo(options.greeting(served))
        options.tell_systemd()

    Supervisor(settings, lambda line: click.echo(line, err=True)).run(ready)
