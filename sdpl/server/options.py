"""What the words of `sdpl-serve` mean, checked before anything is started."""

import contextlib
import importlib
import os
import resource
import socket
import ssl
import sys
from pathlib import Path

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.kernels.gpu import find_gpu, gpu_obstacle
from sdpl.pipeline import available_cores
from sdpl.server.connections import fitting
from sdpl.server.log import open_log
from sdpl.server.settings import Settings

MOST_WORKERS = 16
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def models(words: tuple[str, ...]) -> dict[str, str]:
    """Names and paths of bundles from words such as `model.sdpl` or `birds=runs/7/model.sdpl`. Raises UserError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = Path(os.path.abspath(word)).name.removesuffix(".sdpl"), word
        if not name or not set(name) <= NAME_CHARACTERS:
            raise UserError(f"{word!r}: a model's name may have letters, digits and . _ - only; say NAME={path}.")
        if name in found:
            raise UserError(f"two bundles are called {name!r}: name one of them, such as other={path}.")
        Bundle.open(path)
        found[name] = os.path.join(os.getcwd(), path)  # no link is followed yet: it may lead to another bundle later
    return found


def devices(text: str) -> tuple[str, ...]:
    """The engines of --devices. Raises UserError."""
    found = tuple(text.split(","))
    if not all(each in ("auto", "cpu") or each.isdigit() for each in found):
        raise UserError(f"--devices {text!r}: expected auto, cpu, or numbers of GPUs such as 0,1.")
    for obstacle in (gpu_obstacle(int(each)) for each in found if each.isdigit()):
        if obstacle is not None:
            raise UserError(f"--devices {text!r}: {obstacle}.")
    return found


def workers(text: str, on: str) -> int:
    """Front ends. auto: beside a GPU, decoding is the work, so one for each core but one; on a CPU the engine needs
    the cores, so one for every four of them."""
    if text != "auto":
        if not text.isdigit() or not 1 <= int(text) <= 256:
            raise UserError(f"--workers {text!r}: expected auto or a number from 1 to 256.")
        return int(text)
    cores = available_cores()
    gpu = "cpu" not in on and find_gpu() is not None
    return min(MOST_WORKERS, max(1, cores - 1 if gpu else cores // 4))


def token(path: Path | None) -> str | None:
    """The token in a file. Raises UserError."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path}: cannot be read ({error}).") from None
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise UserError(f"--token-file {path}: needs one word of at least 16 characters (openssl rand -hex 32).")
    return text


def tls(certificate: Path | None, key: Path | None) -> tuple[str | None, str | None]:
    """Both files, tried. Raises UserError."""
    if certificate is None and key is None:
        return None, None
    if certificate is None or key is None:
        raise UserError("--tls-certificate and --tls-key go together: give both.")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"--tls-certificate {certificate}: cannot be used with {key} ({error}).") from None
    return str(certificate.resolve()), str(key.resolve())


def writable(path: str) -> None:
    """Raises UserError when a log cannot be written."""
    os.close(open_log(path))


def narrower(settings: Settings) -> str | None:
    """A line where fewer connections are taken than asked for, since a process may not have so many files open."""
    wanted = settings.connections_each
    found = fitting(wanted)
    if found == wanted:
        return None
    return (
        f"warning: {found * settings.workers} connections at once, not {settings.max_connections}: a process may have "
        f"{resource.getrlimit(resource.RLIMIT_NOFILE)[1]} files open here (ulimit -Hn; LimitNOFILE in systemd)."
    )


def require_packages(settings: Settings) -> None:
    """Raises UserError where something that serving needs is missing."""
    if not sys.platform.startswith("linux"):
        raise UserError("sdpl-serve needs Linux (shared memory between processes, ports shared by them).")
    needed = {"httptools": "serve"}
    if settings.grpc_port is not None:
        needed |= {"grpc": "serve", "google.protobuf": "serve"}
    if settings.otlp_endpoint is not None:
        needed |= {"opentelemetry.sdk": "tracing", "opentelemetry.exporter.otlp.proto.http": "tracing"}
    for module, extra in needed.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(f"serving needs {module}: {install_line(extra)}") from None


def tell_systemd() -> None:
    """Tell a service manager that asked for it (`Type=notify`) that requests are served; does nothing elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", f"\0{address[1:]}" if address[0] == "@" else address)


def greeting(settings: Settings) -> str:
    """What is said when requests are served."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_certificate else "http"
    lines = [f"serving {', '.join(settings.models)}: {scheme}://{host}:{settings.http_port}/"]
    if settings.grpc_port is not None:
        lines.append(f"gRPC: {host}:{settings.grpc_port}")
    return "\n".join(lines)
