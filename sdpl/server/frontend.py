"""The front-end process: receives, checks and decodes, hands slots to the engines, and answers."""

import asyncio
import contextlib
import gc
import ssl
from typing import TYPE_CHECKING

from sdpl.server.app import App
from sdpl.server.channel import Channel, ClosedError
from sdpl.server.connections import ask_for_files, fitting
from sdpl.server.exchange import Limits
from sdpl.server.http import Server
from sdpl.server.routes import Routes
from sdpl.server.settings import Settings

if TYPE_CHECKING:
    from sdpl.server.process import Setup


def serve(setup: "Setup") -> None:
    """Serve until the supervisor says {"drain": true}, or is gone."""
    gc.collect()
    gc.freeze()  # what was imported is not looked through again
    with contextlib.suppress(ClosedError):
        asyncio.run(_serve(setup))


async def _serve(setup: "Setup") -> None:
    settings, loop = setup.settings, asyncio.get_running_loop()
    app = App(settings, setup.engines, setup.counters)
    ask_for_files(settings.connections_each)
    share = fitting(settings.connections_each)
    limits = Limits(
        max_body=settings.max_body,
        max_bodies=settings.bodies_bytes,
        max_connections=share,
        header_timeout_s=settings.header_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        min_bytes_per_s=settings.min_bytes_per_s,
    )
    http = Server(Routes(app), limits)
    context = tls(settings)
    handshake_s = settings.header_timeout_s if context is not None else None  # until then nobody counts a connection
    listening = await loop.create_server(
        http.make, sock=setup.listener, ssl=context, ssl_handshake_timeout=handshake_s, backlog=share
    )
    grpc = None
    if settings.grpc_port is not None:
        from sdpl.server.grpc_service import start

        grpc = await start(app, share)
    tasks = [loop.create_task(link.run()) for link in app.links]
    tasks += [loop.create_task(http.sweep()), loop.create_task(_report(app, http, setup.control))]
    stop = loop.create_future()
    loop.add_reader(setup.control.fileno(), _obey, setup.control, stop)
    drain = await stop
    loop.remove_reader(setup.control.fileno())
    if drain:
        app.draining = True
        await asyncio.sleep(0.05)  # connections that wait to be accepted are
        listening.close()
        http.drain()
        stopping = loop.create_task(grpc.stop(settings.drain_s)) if grpc is not None else None
        await app.drained(lambda: http.busy)
        if stopping is not None:
            await stopping
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    app.decoder.close()
    app.tracer.close()


def tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context


async def _report(app: App, http: Server, control: Channel) -> None:
    """Keep the counters' gauges and the heartbeat, and tell the supervisor when this front end is ready."""
    told = False
    while True:
        app.counters.set_server("connections", len(http.connections))
        app.counters.set_server("body_bytes", http.bodies)
        app.decoding.beat()
        if app.settled and not told:
            told = True
            control.control({"ready": True})
        await asyncio.sleep(0.02 if not told else 0.5)


def _obey(control: Channel, stop: "asyncio.Future[bool]") -> None:
    """The supervisor's word."""
    try:
        for message in control.receive():
            if message.content.get("drain") and not stop.done():
                stop.set_result(True)
    except ClosedError:
        if not stop.done():
            stop.set_result(False)
