"""Scoring many photos: `sdpl-score` against `sdpl-predict`, memory over many images, embeddings, decoders, listing.

    python benchmarks/scoring.py throughput BUNDLE PHOTOS [--backend cpu:int8] [--photos 1000] [--before CHECKOUT]
    python benchmarks/scoring.py decoding PHOTOS [--out FILE.json]         # one thread against two and so on
    python benchmarks/scoring.py memory BUNDLE PHOTOS [--images 100000] [--out FILE.json]
    python benchmarks/scoring.py embeddings BUNDLE PHOTOS [--backend cpu:int8] [--photos 200] [--out FILE.json]
    python benchmarks/scoring.py decoders PHOTOS [--out FILE.json]         # needs simplejpeg
    python benchmarks/scoring.py listing [--files 1000000] [--out FILE.json]

PHOTOS is a folder of JPEG files; they are repeated under new names. Each side of a comparison is a process of its own;
the sides take turns. --before: a checkout of an older sdpl, whose `sdpl-predict` is one more side (`git worktree add`).
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path

import click
import numpy as np
from PIL import Image

from sdpl.bundle import Bundle
from sdpl.pipeline import Decoder, available_cores, batched
from sdpl.preprocess import find_images, load_image, preprocess, squash
from sdpl.runtime.environment import environment, peak_memory_mb

OUT = click.option("--out", type=click.Path(path_type=Path))
FOLDER = click.Path(path_type=Path, exists=True)
SIDE = 448


@click.group()
def main() -> None:
    """See the text at the head of this file."""


@main.command()
@click.argument("bundle", type=FOLDER)
@click.argument("photos", type=FOLDER)
@click.option("--backend", default="cpu:int8")
@click.option("--photos", "count", default=1000)
@click.option("--rounds", default=2)
@click.option("--before", type=FOLDER)
@OUT
def throughput(
    bundle: Path, photos: Path, backend: str, count: int, rounds: int, before: Path | None, out: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        for i, photo in enumerate(islice(cycle(find_images([photos])), count)):
            (folder / f"{i:06d}.jpg").write_bytes(photo.read_bytes())
        tar = write_tar(Path(name) / "photos.tar", sorted(folder.iterdir()))
        words = [bundle.resolve(), "--backend", backend, "--json"]
        seconds: dict[str, list[dict[str, float]]] = {"predict, folder": [], "score, folder": [], "score, tar": []}
        summaries = []
        if before is not None:
            seconds["predict before, folder"] = []
        for i in range(rounds):
            if before is not None:
                took, _ = timed("predict", words[0], folder, *words[1:], checkout=before)
                seconds["predict before, folder"].append(took)
            seconds["predict, folder"].append(timed("predict", words[0], folder, *words[1:])[0])
            for kind, source in (("folder", folder), ("tar", tar)):
                took, text = timed("score", words[0], source, *words[1:], "--out", Path(name) / f"{kind}{i}")
                seconds[f"score, {kind}"].append(took)
                summaries.append(json.loads(text.splitlines()[-1]))
    best = {side: {kind: min(run[kind] for run in runs) for kind in runs[0]} for side, runs in seconds.items()}
    keys = ("images_per_s", "images_per_cpu_s", "model_busy", "decoding_busy")
    write(
        {
            "environment": environment(),
            "load_average": os.getloadavg(),
            "backend": backend,
            "photos": count,
            "seconds": seconds,
            "best": best,
            "score_over_predict": ratio(best, "predict, folder", "score, folder"),
            "score_over_predict_before": None
            if before is None
            else ratio(best, "predict before, folder", "score, folder"),
            "tar_over_folder": ratio(best, "score, folder", "score, tar"),
            "scoring": [{key: summary[key] for key in keys} for summary in summaries],
        },
        out,
    )


@main.command()
@click.argument("bundle", type=FOLDER)
@click.argument("photos", type=FOLDER)
@click.option("--images", default=100_000)
@OUT
def memory(bundle: Path, photos: Path, images: int, out: Path | None) -> None:
    """The resident set while ten tar shards are scored."""
    with tempfile.TemporaryDirectory() as name:
        first = write_tar(Path(name) / "0.tar", list(islice(cycle(find_images([photos])), images // 10)))
        for i in range(1, 10):
            os.link(first, Path(name) / f"{i}.tar")
        command = [sys.executable, "-m", "sdpl", "score", str(bundle), name, "--out", f"{name}/out", "--json"]
        begin, samples = time.perf_counter(), []
        with open(f"{name}/log", "w") as log:
            process = subprocess.Popen(command, stdout=log)
            while process.poll() is None:
                time.sleep(0.5)
                samples.append((time.perf_counter() - begin, resident_mb(process.pid)))
        summary = json.loads(Path(f"{name}/log").read_text().splitlines()[-1])
    at = [samples[int(len(samples) * part)][1] for part in (0.1, 0.3, 0.5, 0.7, 0.9)]
    write(
        {
            "environment": environment(),
            "images": summary["all_images"],
            "images_per_s": summary["images_per_s"],
            "resident_mb_at_10_30_50_70_90_percent": at,
            "largest_mb": max(mb for _, mb in samples),
        },
        out,
    )


@main.command()
@click.argument("bundle", type=FOLDER)
@click.argument("photos", type=FOLDER)
@click.option("--backend", default="cpu:int8", help="A target of ONNX Runtime on a CPU.")
@click.option("--photos", "count", default=200)
@click.option("--rounds", default=3)
@click.option("--calls", default=30)
@OUT
def embeddings(bundle: Path, photos: Path, backend: str, count: int, rounds: int, calls: int, out: Path | None) -> None:
    """What embeddings cost: one image's call with the graph's third output, without it, and with it asked for, on one
    thread; and `sdpl-score` with and without `--embeddings`."""
    with tempfile.TemporaryDirectory() as name:
        tar = write_tar(Path(name) / "photos.tar", islice(cycle(find_images([photos])), count))
        seconds: dict[str, list[dict[str, float]]] = {"scores": [], "scores and embeddings": []}
        size_mb = {}
        for i in range(rounds):
            for side, words in zip(seconds, ((), ("--embeddings",)), strict=True):
                folder = Path(name) / f"{len(words)}{i}"
                command = ("score", bundle.resolve(), tar, "--backend", backend, "--out", folder, *words)
                seconds[side].append(timed(*command)[0])
                size_mb[side] = sum(file.stat().st_size for file in folder.glob("*.parquet")) / 1e6
        calls_ms = third_output_ms(bundle, backend, find_images([photos])[0], calls)
    best = {side: {kind: min(run[kind] for run in runs) for kind in runs[0]} for side, runs in seconds.items()}
    about = {"environment": environment(), "load_average": os.getloadavg(), "backend": backend}
    score = {"photos": count, "seconds": seconds, "best": best, "parquet_mb": size_mb}
    cost = ratio(best, "scores and embeddings", "scores")
    write({**about, "call_cpu_ms": calls_ms, "score": score, "embeddings_over_scores": cost}, out)


def third_output_ms(bundle: Path, backend: str, photo: Path, calls: int) -> dict[str, float]:
    """CPU ms of one image's call, medians of calls in turns, one thread: the graph without its output `embedding`, with
    it, and asked for it."""
    import onnx
    import onnxruntime

    opened = Bundle.open(bundle)
    model = onnx.load(opened.file(opened.manifest.targets[backend].files["model"]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    whole = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model.graph.output.remove(next(output for output in model.graph.output if output.name == "embedding"))
    cut = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = preprocess(photo, opened.manifest.preprocessing.image_size)[None]
    sides = {
        "graph without it": (cut, ["scores"]),
        "graph with it": (whole, ["scores"]),
        "asked for it": (whole, ["scores", "embedding"]),
    }
    took: dict[str, list[float]] = {side: [] for side in sides}
    for call in range(calls + 2):
        for side, (session, outputs) in sides.items():
            begin = time.process_time()
            session.run(outputs, {"image": image})
            if call >= 2:  # the first ones warm up
                took[side].append(1000 * (time.process_time() - begin))
    return {side: statistics.median(times) for side, times in took.items()}


@main.command()
@click.argument("photos", type=FOLDER)
@click.option("--rounds", default=3)
@OUT
def decoding(photos: Path, rounds: int, out: Path | None) -> None:
    """Photos a second through the decoding pool, to 448 pixels, with nothing beside it; threads in turns."""
    files = find_images([photos]) * 4
    threads = range(1, available_cores() + 1)
    rates: dict[int, list[float]] = {count: [] for count in threads}
    for _ in range(rounds):
        for count in threads:
            with Decoder(count) as decoder:
                begin = time.perf_counter()
                done = sum(
                    len(group) for group in decoder.groups(batched(files, 16), lambda path: preprocess(path, SIDE))
                )
                rates[count].append(done / (time.perf_counter() - begin))
    best = {count: max(found) for count, found in rates.items()}
    scaling = {count: rate / best[1] for count, rate in best.items()}
    about = {"environment": environment(), "load_average": os.getloadavg(), "photos": len(files)}
    write({**about, "photos_per_s": best, "times_one_thread": scaling}, out)


@main.command()
@click.argument("photos", type=FOLDER)
@click.option("--rounds", default=5)
@OUT
def decoders(photos: Path, rounds: int, out: Path | None) -> None:
    """Pillow against simplejpeg in the whole of preprocessing, on one thread: equal bits, CPU seconds per photo."""
    import simplejpeg

    data = [path.read_bytes() for path in find_images([photos])]

    def pillow(content: bytes) -> np.ndarray:
        return squash(load_image(content, decode_side=2 * SIDE), SIDE)

    def fast(content: bytes) -> np.ndarray:
        # only what the whole pipeline would need too: header checks and orientation are left out, in its favour
        return squash(Image.fromarray(simplejpeg.decode_jpeg(content, "RGB")), SIDE)

    equal = sum(np.array_equal(pillow(content), fast(content)) for content in data)
    times = {"pillow": [], "simplejpeg": []}
    for _ in range(rounds):
        for name, run in (("pillow", pillow), ("simplejpeg", fast)):
            times[name].append(cpu_ms(run, data))
    best = {name: min(runs) for name, runs in times.items()}
    write(
        {
            "environment": environment(),
            "simplejpeg": simplejpeg.__version__,
            "photos": len(data),
            "photos_with_equal_bits": equal,
            "cpu_ms_per_photo": best,
            "gain_of_preprocessing": best["pillow"] / best["simplejpeg"] - 1,
        },
        out,
    )


@main.command()
@click.option("--files", default=1_000_000)
@OUT
def listing(files: int, out: Path | None) -> None:
    """A folder of empty files, in folders of 10,000, to shards: seconds and the memory of the driver."""
    from sdpl.scale.plan import make_plan

    with tempfile.TemporaryDirectory() as name:
        for i in range(files):
            if i % 10_000 == 0:
                (Path(name) / f"{i // 10_000:04d}").mkdir()
            os.mknod(f"{name}/{i // 10_000:04d}/{i:07d}.jpg")
        before, begin = peak_memory_mb(), time.perf_counter()
        plan, _ = make_plan([name], recursive=True, shard_size=10_000)
        took = time.perf_counter() - begin
        write(
            {
                "environment": environment(),
                "files": files,
                "shards": len(plan),
                "seconds": took,
                "memory_mb": (peak_memory_mb() or 0) - (before or 0),
                "table_mb": plan.table.nbytes / 1e6,
            },
            out,
        )


def timed(*words: object, checkout: Path | None = None) -> tuple[dict[str, float], str]:
    """Wall and CPU seconds of one command, of another checkout's sdpl if one is named, and what it printed."""
    environment = {**os.environ, **({"PYTHONPATH": str(checkout.resolve())} if checkout else {})}
    command = [sys.executable, "-m", "sdpl", *(str(word) for word in words)]
    begin, cpu = time.perf_counter(), sum(os.times()[2:4])
    run = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return {"wall": time.perf_counter() - begin, "cpu": sum(os.times()[2:4]) - cpu}, run.stdout


def ratio(best: dict[str, dict[str, float]], slower: str, faster: str) -> dict[str, float]:
    """How many times as long one side takes as the other; CPU seconds say it even on a machine with other work."""
    return {kind: best[slower][kind] / best[faster][kind] for kind in ("wall", "cpu")}


def cpu_ms(run: Callable[[bytes], object], data: list[bytes]) -> float:
    begin = time.thread_time()
    for content in data:
        run(content)
    return 1000 * (time.thread_time() - begin) / len(data)


def write_tar(path: Path, photos: Iterable[Path]) -> Path:
    with tarfile.open(path, "w") as tar:
        for i, photo in enumerate(photos):
            tar.add(photo, f"{i:06d}.jpg")
    return path


def resident_mb(pid: int) -> float:
    """Of a process and of those that it has started."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
        return own_mb(pid) + sum(resident_mb(int(child)) for child in children)
    except OSError:
        return 0.0


def own_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
    except (OSError, StopIteration):
        return 0.0


def write(result: dict, out: Path | None) -> None:
    text = json.dumps(result, indent=2) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text)


if __name__ == "__main__":
    main()
