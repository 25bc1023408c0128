"""Latency and throughput, measured so that the numbers can be trusted (design, section 7).

Every latency names its boundary: "model" is uint8 [B,S,S,3] in memory to scores; "end to end" is B encoded
JPEG files in memory to scores, with decoding in as many threads as cores.
"""

import io
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from sdpl import __version__
from sdpl.runtime.recognizer import Recognizer

BOUNDARIES = ("model", "end to end")
UNSTABLE = 0.10  # half the runs spread over more than this share of the median


@dataclass(frozen=True)
class Latency:
    """Times of one call, in milliseconds. `spread` is the interquartile range over the median."""

    boundary: str
    batch: int
    runs: int
    warmup_runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    spread: float
    images_per_s: float
    stable: bool


def measure(call: Callable[[], object], seconds: float, min_runs: int = 10) -> tuple[np.ndarray, int]:
    """Wall-clock times of a call in ms, float [runs], and how many calls warmed up first.

    Warm-up lasts a fifth of the time and at least 2 calls; then at least `min_runs` calls are timed.
    """
    warmup_runs, start = 0, time.perf_counter()
    while warmup_runs < 2 or time.perf_counter() - start < seconds / 5:
        call()
        warmup_runs += 1
    times, start = [], time.perf_counter()
    while len(times) < min_runs or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - before))
    return np.array(times), warmup_runs


def summarise(boundary: str, batch: int, times_ms: np.ndarray, warmup_runs: int) -> Latency:
    p25, p50, p75, p95, p99 = np.percentile(times_ms, (25, 50, 75, 95, 99)).tolist()
    spread = (p75 - p25) / p50
    return Latency(
        boundary, batch, len(times_ms), warmup_runs, p50, p95, p99, spread, 1000 * batch / p50, spread <= UNSTABLE
    )


def benchmark(
    recognizer: Recognizer, batch_sizes: list[int], seconds: float, report: Callable[[Latency], None] = lambda row: None
) -> list[Latency]:
    """Measure every boundary at every batch size, `seconds` each, on the images of the bundle's proof."""
    images, _ = recognizer.bundle.proof()
    files = [_jpeg(image) for image in images]
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batch_sizes:
            chosen = np.arange(batch) % len(images)
            inputs = np.ascontiguousarray(images[chosen])  # [B,S,S,3]
            encoded = [files[i] for i in chosen]

            def end_to_end(encoded=encoded):
                return recognizer.scores(np.stack(list(pool.map(recognizer.preprocess, encoded))))

            calls = (lambda inputs=inputs: recognizer.scores(inputs), end_to_end)
            for boundary, call in zip(BOUNDARIES, calls, strict=True):
                rows.append(summarise(boundary, batch, *measure(call, seconds)))
                report(rows[-1])
    return rows


def environment() -> dict[str, str | int | None]:
    """The machine and the versions that a number belongs to."""
    return {
        "sdpl": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": _cpu_info("model name") or platform.processor(),
        "cpu_mhz": _cpu_info("cpu MHz"),
        "cores": os.cpu_count(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def to_json(recognizer: Recognizer, rows: list[Latency]) -> dict:
    """Everything measured, with what it was measured on, as plain values."""
    return {
        "environment": environment(),
        "backend": recognizer.backend.describe(),
        "image_size": recognizer.image_size,
        "categories": len(recognizer.categories),
        "latencies": [asdict(row) for row in rows],
    }


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _cpu_info(key: str) -> str | None:
    """The first core's entry in /proc/cpuinfo; None where there is no such file."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
    except OSError:
        return None


def table(result: dict):
    """The measurements as a table; rows that are not stable carry a star."""
    from rich.table import Table

    backend, environment = result["backend"], result["environment"]
    rendered = Table(
        title=f"{backend['backend']} {backend['onnxruntime']}, {backend['threads']}, {environment['cpu']}, "
        f"{result['image_size']} px, {result['categories']} categories",
        caption=f"runs: warm-up + timed; clock at the end {environment['cpu_mhz']} MHz",
    )
    rendered.add_column("boundary")
    for name in ("batch", "p50 ms", "p95 ms", "p99 ms", "spread", "images/s", "runs"):
        rendered.add_column(name, justify="right")
    for row in result["latencies"]:
        rendered.add_row(
            row["boundary"],
            str(row["batch"]),
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{row['spread']:.1%}{'' if row['stable'] else ' *'}",
            f"{row['images_per_s']:.1f}",
            f"{row['warmup_runs']}+{row['runs']}",
        )
    return rendered
