"""Latency and throughput, measured so that the numbers can be trusted.

Every latency names its boundary: "device" is both stages on a GPU, inputs and results staying there; "model" is uint8
[B,S,S,3] in memory to scores in memory, transfers included; "end to end" is B encoded JPEG files in memory to scores,
decoded, resized and batched as `Recognizer.recognize` does it (other sides: by the same `sdpl.pipeline`).
"""

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdpl.bundle import Bundle
from sdpl.pipeline import Decoder, stream
from sdpl.preprocess import preprocess
from sdpl.progress import Progress, Report, silent
from sdpl.runtime.environment import clock_mhz, environment, gpu_used_mb, peak_memory_mb
from sdpl.runtime.recognizer import Recognizer

UNSTABLE = 0.10  # of the median: the spread of half the runs, or the drift from the first half of them to the second
Scorer = Callable[[np.ndarray], Any]  # uint8 [B,S,S,3] -> scores


@dataclass(frozen=True)
class Latency:
    """Times of one call, in milliseconds. `spread` is the interquartile range over the median; `drift` how far the
    medians of the earlier and the later half of the runs lie apart. Throughput is that of all callers together."""

    side: str
    boundary: str
    batch: int
    callers: int
    runs: int
    warmup_runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    spread: float
    drift: float
    images_per_s: float
    clock_mhz: str | None  #: right after the last run
    stable: bool


def measure(call: Callable[[], object], seconds: float, min_runs: int = 10) -> tuple[np.ndarray, int]:
    """Wall-clock times of a call in ms, float [runs], and how many calls warmed up first.

    Warm-up lasts a fifth of the time and at least 2 calls; then at least `min_runs` calls are timed.
    """
    warmup_runs, start = 0, time.perf_counter()
    while warmup_runs < 2 or time.perf_counter() - start < seconds / 5:
        call()
        warmup_runs += 1
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < min_runs or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - before))
    return np.array(times), warmup_runs


def summarize(
    boundary: str, batch: int, times_ms: np.ndarray, warmup_runs: int, side: str = "sdpl", callers: int = 1
) -> Latency:
    p25, p50, p75, p95, p99 = np.percentile(times_ms, (25, 50, 75, 95, 99)).tolist()
    early, late = np.median(times_ms[: len(times_ms) // 2]), np.median(times_ms[len(times_ms) // 2 :])
    spread, drift = (p75 - p25) / p50, float(abs(late - early) / p50)
    return Latency(
        side=side,
        boundary=boundary,
        batch=batch,
        callers=callers,
        runs=len(times_ms),
        warmup_runs=warmup_runs,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        spread=spread,
        drift=drift,
        images_per_s=batch * rate(times_ms, callers),
        clock_mhz=clock_mhz(),
        stable=max(spread, drift) <= UNSTABLE,
    )


def measure_callers(call: Callable[[], object], callers: int, seconds: float) -> tuple[np.ndarray, int]:
    """As `measure`, with several threads calling at once: the times of all of them."""
    if callers == 1:
        return measure(call, seconds)
    with ThreadPoolExecutor(callers) as pool:
        results = [f.result() for f in [pool.submit(measure, call, seconds) for _ in range(callers)]]
    order = np.argsort(np.concatenate([np.cumsum(times) for times, _ in results]), kind="stable")
    return np.concatenate([times for times, _ in results])[order], sum(warmup for _, warmup in results)


def rate(times_ms: np.ndarray, callers: int) -> float:
    """Calls a second of all callers together: each spends the whole time calling, so together they spend `callers`
    seconds a second. With several the mean counts, since waiting for each other is part of the work."""
    return 1000 * callers / float(times_ms.mean() if callers > 1 else np.median(times_ms))


class Inputs:
    """The images of a bundle's proof, as arrays and as JPEG files, repeated to any batch."""

    def __init__(self, bundle: Bundle):
        self._images, _ = bundle.proof()
        self._files = [jpeg(image) for image in self._images]
        self.image_size = bundle.manifest.preprocessing.image_size

    def array(self, batch: int) -> np.ndarray:
        """uint8 [B,S,S,3]."""
        return np.ascontiguousarray(self._images[np.arange(batch) % len(self._images)])

    def files(self, batch: int) -> list[bytes]:
        """A batch of JPEG files."""
        return [self._files[i % len(self._files)] for i in range(batch)]


def benchmark(
    side: str,
    scorer: Scorer,
    inputs: Inputs,
    batch_sizes: list[int],
    callers: list[int],
    seconds: float,
    recognizer: Recognizer | None = None,
) -> Iterator[Latency]:
    """Measure one side's boundaries at every batch size and number of callers, `seconds` each.

    recognizer: of a bundle's own side; its "device" boundary is measured too where it has one.
    """
    load = partial(preprocess, image_size=inputs.image_size)
    backend = None if recognizer is None else recognizer.backend
    with Decoder() as decoder:
        for batch in batch_sizes:
            images, files = inputs.array(batch), inputs.files(batch)
            if backend is not None and batch <= backend.largest_on_device:
                yield summarize("device", batch, *measure(backend.on_device(images), seconds), side)

            def end_to_end(files: list[bytes] = files, batch: int = batch) -> object:
                if recognizer is not None:
                    return list(recognizer.stream(files, batch_size=batch))
                return list(stream(decoder, files, load, scorer, batch))

            for boundary, call in (("model", partial(scorer, images)), ("end to end", end_to_end)):
                for count in callers:
                    times, warmup_runs = measure_callers(call, count, seconds)
                    yield summarize(boundary, batch, times, warmup_runs, side, count)


def benchmark_bundle(
    bundle: str | Path,
    backend: str,
    threads: int | None,
    batch_sizes: list[int],
    callers: list[int],
    seconds: float,
    others: dict[str, Scorer] | None = None,
    report: Report = silent,
    streams: int | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Measure a bundle, then other scorers by name, in one go: everything as plain values (`to_json`).

    backend, threads, streams, precision: as for `Recognizer.open`. See `benchmark` for the rest.
    """
    rows: list[Latency] = []
    with Recognizer.open(bundle, backend, threads, streams, precision) as recognizer:
        inputs = Inputs(recognizer.bundle)
        sides: dict[str, tuple[Scorer, Recognizer | None]] = {"sdpl": (recognizer.scores, recognizer)}
        sides |= {name: (scorer, None) for name, scorer in (others or {}).items()}
        for side, (scorer, own) in sides.items():
            for row in benchmark(side, scorer, inputs, batch_sizes, callers, seconds, own):
                rows.append(row)
                report(Progress(f"{side}, {row.boundary}, batch {row.batch}: p50 {row.p50_ms:.2f} ms"))
            recognizer.close()  # waiting threads of one library slow the next one down
        return to_json(recognizer, rows)


def to_json(recognizer: Recognizer, rows: list[Latency]) -> dict[str, Any]:
    """Everything measured, with what it was measured on, as plain values."""
    return {
        "environment": environment(),
        "gpu_used_mb": gpu_used_mb(),
        "peak_memory_mb": peak_memory_mb(),
        "target": recognizer.target,
        "chosen": recognizer.chosen,
        "backend": recognizer.backend.describe(),
        "skipped": recognizer.skipped,
        "image_size": recognizer.image_size,
        "categories": len(recognizer.categories),
        "latencies": [asdict(row) for row in rows],
    }


def jpeg(image: np.ndarray) -> bytes:
    """An image [H,W,3] as a JPEG of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
