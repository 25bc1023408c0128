"""Servers on one machine: sdpl-serve, real Triton and a plain ASGI application, same bundle, same clients, one run.

    python benchmarks/serve.py BUNDLE [--triton VENV] [--small BUNDLE] [--out docs/benchmarks/serve.json]

What a request costs beside the model is measured on a bundle whose model does next to nothing (its scores are some of
its pixels): CPU time of all the server's processes for one request with one image, and throughput, at 1, 8, 32 and 128
callers. BUNDLE gives it its size. Triton runs the repository of `sdpl-export --triton` with its Python backend; VENV is
an environment with nvidia-pytriton, numpy < 2 and what `sdpl[runtime]` needs. --small: a bundle with a real model,
whose throughput behind the server is compared with direct calls. Clients run in this process: server and client share
the machine's cores, so throughput is that of both.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper

from sdpl.bundle import Bundle, sha256
from sdpl.export.triton import write_triton
from sdpl.manifest import MANIFEST, FileRecord
from sdpl.runtime import Recognizer
from sdpl.runtime.bench import measure, summarize
from sdpl.runtime.environment import environment
from sdpl.server.load import Load, Target, _closed, _open, _Tally, find_target
from sdpl.server.messages import message

TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
OVERLOAD_WAIT_MS = 2000
ASGI = """
import json, sys
import numpy as np
from sdpl.runtime import Recognizer
recognizer = Recognizer.open(sys.argv[1], threads=1)
S = recognizer.image_size
ABOUT = {"platform": "asgi", "inputs": [{"name": "image", "shape": [-1, S, S, 3]}]}

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = [], scope["method"] == "POST"
    while more:
        event = await receive()
        body.append(event["body"])
        more = event["more_body"]
    head, answer = [], json.dumps(ABOUT).encode()
    if body:
        split = int(dict(scope["headers"])[b"inference-header-content-length"])
        data = b"".join(body)
        entry = json.loads(data[:split])["inputs"][0]
        scores = recognizer.scores(np.frombuffer(data, np.uint8, offset=split).reshape(entry["shape"]))
        output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
        text = json.dumps({"outputs": [output]}).encode()
        answer = text + scores.tobytes()
        head = [(b"inference-header-content-length", str(len(text)).encode())]
    head.append((b"content-length", str(len(answer)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": answer})

import uvicorn
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


def cheap_bundle(source: Path, out: Path) -> None:
    """A copy of a bundle whose model copies C pixels to the scores."""
    shutil.copytree(source, out)
    manifest = Bundle.open(out).manifest
    S, C = manifest.preprocessing.image_size, len(manifest.categories)
    L, E = int(np.prod(manifest.map_size)), manifest.embedding_size or 1
    name = manifest.targets["cpu:fp32"].files["model"]
    constants = {"from": [0, 0, 0], "to": [1, C, 1], "axes": [1, 2, 3], "shape": [0, C], "times": [1, 1, L], "two": [2]}
    constants |= {"one": [1], "first": [0], "units": [1, E]}
    initial = [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in constants.items()]
    initial.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255]))
    nodes = [
        helper.make_node("Slice", ["image", "from", "to", "axes"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scores"]),
        helper.make_node("Unsqueeze", ["scores", "two"], ["wide"]),
        helper.make_node("Tile", ["wide", "times"], ["attention"]),
        helper.make_node("Slice", ["scores", "first", "one", "one"], ["column"]),
        helper.make_node("Tile", ["column", "units"], ["embedding"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", S, S, 3])
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", C]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["B", C, L]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", E]),
    ]
    graph = helper.make_graph(nodes, "cheap", [image], outputs, initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), out / name)
    record = FileRecord(sha256=sha256(out / name), size=(out / name).stat().st_size)
    changed = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    (out / MANIFEST).write_text(changed.model_dump_json(exclude_none=True))


@contextmanager
def running(command: list[str], environment: dict[str, str], port: int) -> Iterator[int]:
    """A server, ready; its process id."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for path in ("/v2/health/ready", "/"):  # the plain application has no health
            until(lambda path=path: answers(f"http://127.0.0.1:{port}{path}") or process.poll() is not None)
            if process.poll() is not None:
                raise click.ClickException(f"{command[0]} ended with status {process.returncode}")
            break
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def until(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise click.ClickException("a server did not become ready")
        time.sleep(0.05)


def cpu_ms(pid: int) -> float:
    """CPU time so far of a process and all below it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) * TICK_MS + sum(cpu_ms(int(child)) for child in children)


async def closed_grpc(port: int, model: str, side: int, callers: int, seconds: float) -> Load:
    """As `_closed`, over gRPC."""
    request = message("ModelInferRequest")(model_name=model)
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    request.inputs.add(name="image", datatype="UINT8", shape=image.shape)
    request.outputs.add(name="scores")
    request.raw_input_contents.append(image.tobytes())
    data, tally, begin = request.SerializeToString(), _Tally(), time.perf_counter() + seconds / 5
    end = begin + seconds

    async def call() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while (since := time.perf_counter()) < end:
                await ask(data)
                if since >= begin:
                    tally.add(200, since)

    await asyncio.gather(*(call() for _ in range(callers)))
    return tally.load(loop="closed", callers=callers, offered_per_s=None, input="image", seconds=seconds)


def measured(side: str, transport: str, pid: int, run) -> dict:
    """One row: the load, and the server's CPU for one request of it (warm-up included in both)."""
    before = cpu_ms(pid)
    load: Load = asyncio.run(run())
    spent = cpu_ms(pid) - before
    total = (load.answered + load.errors + load.refused) * 1.2  # the first fifth is answered but not counted
    row = {"side": side, "transport": transport, "cpu_ms_per_request": spent / max(total, 1), **asdict(load)}
    cpu, rate = row["cpu_ms_per_request"], load.answered_per_s
    print(f"{side}, {transport}, {load.input}, {load.callers} callers: {cpu:.3f} ms CPU, {rate:.0f}/s", flush=True)
    return row


def overhead(side: str, pid: int, http: int, grpc_port: int | None, callers: list[int], seconds: float, jpeg: bool):
    """All rows of one server that runs the cheap bundle."""
    kinds = [False, True] if jpeg else [False]
    targets = {kind: as_target(http, kind) for kind in kinds}
    for count in callers:
        for kind, target in targets.items():
            name = "jpeg" if kind else "image"
            yield measured(side, "http", pid, lambda t=target, n=name, c=count: _closed(t, c, seconds, n))
        if grpc_port is not None:
            shape = targets[False].description["inputs"][0]["shape"]
            size = next(n for n in shape if n > 3)
            yield measured(side, "grpc", pid, lambda c=count, s=size: closed_grpc(grpc_port, "cheap", s, c, seconds))


def as_target(port: int, encoded: bool) -> Target:
    return find_target(f"http://127.0.0.1:{port}", "cheap", encoded)


def serve_command(bundle: Path, *words: str) -> list[str]:
    ports = ["--http-port", "8710", "--grpc-port", "8711"]
    return [sys.executable, "-m", "sdpl", "serve", str(bundle), *ports, "--workers", "1", "--threads", "1", *words]


def triton(venv: Path, repository: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and environment of tritonserver out of nvidia-pytriton."""
    packages = next((venv / "lib").glob("python3.*")) / "site-packages"
    server = folder / "tritonserver"
    shutil.copytree(packages / "pytriton" / "tritonserver", server)
    stub = (
        server / "python_backend_stubs" / ".".join(platform.python_version_tuple()[:2]) / "triton_python_backend_stub"
    )
    shutil.copy(stub, server / "backends" / "python")
    os.chmod(server / "bin" / "tritonserver", 0o755)
    libraries = subprocess.run(
        [venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    root = Path(__file__).parent.parent
    variables = {
        **os.environ,
        "PYTHONPATH": f"{root}:{packages}",
        "LD_LIBRARY_PATH": f"{libraries}:{packages / 'nvidia_pytriton.libs'}",
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    words = [
        f"--model-repository={repository}", "--model-control-mode=explicit", "--load-model=cheap",
        f"--backend-directory={server / 'backends'}", "--http-port=8710", "--grpc-port=8711", "--allow-metrics=false",
        "--backend-config=python,shm-default-byte-size=67108864",
    ]  # fmt: skip
    return [str(server / "bin" / "tritonserver"), *words], variables


def beside_direct(bundle: Path, seconds: float) -> dict:
    """Throughput of a real model: direct calls of its batch sizes, and 32 callers of the server."""
    with Recognizer.open(bundle, "cpu:fp32", threads=1) as recognizer:
        side, direct = recognizer.image_size, {}
        for batch in (1, 8, 16):
            images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
            times, warm = measure(lambda images=images: recognizer.scores(images), seconds, min_runs=3)
            direct[batch] = summarize("model", batch, times, warm).images_per_s
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with running(serve_command(bundle, "--max-wait-ms", "60000", "--timeout-ms", "60000"), variables, 8710) as pid:
        target = find_target("http://127.0.0.1:8710", None, False)
        with busy() as share:
            row = measured("sdpl-serve, real model", "http", pid, lambda: _closed(target, 32, 4 * seconds, "image"))
        row["engine_busy"] = share[0]
    with running(serve_command(bundle, "--max-wait-ms", str(OVERLOAD_WAIT_MS)), variables, 8710) as pid:
        target = find_target("http://127.0.0.1:8710", None, False)
        rate = 8 * row["answered_per_s"]
        with busy() as share:
            crowd = measured(
                "sdpl-serve, 8 times too much", "http", pid, lambda: _open(target, rate, 4 * seconds, "image")
            )
        crowd["engine_busy"] = share[0]
    print(f"direct {direct}, behind the server {row['answered_per_s']:.2f}, overloaded {crowd['answered_per_s']:.2f}/s")
    return {"direct_images_per_s": direct, "served": row, "overloaded": crowd, "max_wait_ms": OVERLOAD_WAIT_MS}


@contextmanager
def busy() -> Iterator[list[float]]:
    """The share of the time in which the engine was running batches; other programs on the machine do not change it
    as they change throughput."""

    def run_seconds() -> float:
        with urllib.request.urlopen("http://127.0.0.1:8710/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("sdpl_run_seconds_sum"))

    share: list[float] = []
    before, begin = run_seconds(), time.perf_counter()
    yield share
    share.append((run_seconds() - before) / (time.perf_counter() - begin))


def start_up(bundle: Path) -> dict[str, float]:
    """Seconds from the command to ready, beside those that opening and proving take in one process."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    begin = time.perf_counter()
    with running(serve_command(bundle), variables, 8710):
        ready = time.perf_counter() - begin
    begin = time.perf_counter()
    settings = f"Settings({{'model': {str(bundle)!r}}}, threads=1)"
    code = f"from sdpl.server.serving import *; make_ready({str(bundle)!r}, {settings})"
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    return {"ready_s": ready, "opening_alone_s": time.perf_counter() - begin}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--small", type=click.Path(path_type=Path, exists=True), help="Compare its throughput with direct calls.")
@click.option("--triton", "venv", type=click.Path(path_type=Path, exists=True))
@click.option("--skip-overhead", is_flag=True, help="Only --small; the rest of --out stays as it is.")
@click.option("--callers", default="1,8,32,128", show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Per row.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    bundle: Path,
    small: Path | None,
    venv: Path | None,
    skip_overhead: bool,
    callers: str,
    seconds: float,
    out: Path | None,
) -> None:
    result = json.loads(out.read_text()) if skip_overhead and out is not None else {}
    if not skip_overhead:
        counts = [int(count) for count in callers.split(",")]
        result = {"environment": environment(), "overhead": all_overhead(bundle, venv, counts, seconds)}
    if small is not None:
        result["start"] = start_up(small)
        result["beside_direct"] = {"environment": environment(), **beside_direct(small, seconds)}
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


def all_overhead(bundle: Path, venv: Path | None, counts: list[int], seconds: float) -> list[dict]:
    """What a request costs beside the model, of every server that is here."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cheap = folder / "cheap.sdpl"
        cheap_bundle(bundle, cheap)
        with running(serve_command(cheap, "--skip-proof"), variables, 8710) as pid:
            rows += overhead("sdpl-serve", pid, 8710, 8711, counts, seconds, jpeg=True)
        if venv is not None:
            write_triton(cheap, folder / "repository")
            command, of_triton = triton(venv, folder / "repository", folder)
            with running(command, of_triton, 8710) as pid:
                rows += overhead("Triton, Python backend", pid, 8710, 8711, counts, seconds, jpeg=True)
        try:
            import uvicorn  # noqa: F401
        except ImportError:
            print("no uvicorn here: the plain ASGI application is left out")
        else:
            (folder / "plain.py").write_text(ASGI)
            command = [sys.executable, str(folder / "plain.py"), str(cheap), "8710"]
            with running(command, variables, 8710) as pid:
                rows += overhead("ASGI on uvicorn", pid, 8710, None, counts, seconds, jpeg=False)
    return rows


if __name__ == "__main__":
    main()
