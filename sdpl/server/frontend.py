"""The front-end process: receives, checks and decodes, hands slots to the engines, and answers."""

import asyncio
import contextlib
import gc
import resource
import ssl
from typing import TYPE_CHECKING

from sdpl.server.app import App
from sdpl.server.channel import Channel, ClosedError
from sdpl.server.exchange import Limits
from sdpl.server.http import Server
from sdpl.server.routes import Routes
from sdpl.server.settings import Settings

FILES_EACH = 3  # of a connection: itself, one that is accepted only to be refused, and one of gRPC
FILES_BESIDE = 64  # open files of a front end beside its connections

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
    share = connections(max(1, settings.max_connections // settings.workers))
    limits = Limits(
        max_body=settings.max_body,
        max_bodies=settings.bodies_bytes,
        max_connections=share,
        header_timeout_s=settings.header_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        min_bytes_per_s=settings.min_bytes_per_s,
    )
    http = Server(Routes(app), limits)
    listening = await loop.create_server(http.make, sock=setup.listener, ssl=tls(settings), backlog=share)
    grpc = None
    if settings.grpc_port is not None:
        from sdpl.server.grpc_service import start

        grpc = await start(app)
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


def connections(wanted: int) -> int:
    """How many connections there is room for, at most so many: each is an open file, of which a process may have only
    1,024 where nobody asks for more. Beyond that, asyncio could not even refuse them, and would do nothing but try."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_EACH * wanted + FILES_BESIDE
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(1, min(wanted, (limit - FILES_BESIDE) // FILES_EACH))


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
