"""Counts that all processes of a server keep in shared memory, and how they look to Prometheus.

Each process writes only its own row, so nothing is locked; whoever is asked adds the rows up. A process that is
restarted goes on in the row of the one before it: counters never go back.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from sdpl.server.refusal import REASONS

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
COUNTS = {  # of each model
    "requests_http": "Inference requests over HTTP.",
    "requests_grpc": "Inference requests over gRPC.",
    "images": "Images scored.",
    "request_bytes": "Bytes of inference requests received.",
    "batches": "Calls of the engine.",
    "reloads": "Bundles swapped while serving.",
    "reload_failures": "Bundles that were not taken, the old one serving on.",
}
GAUGES = {
    "in_hand": "Images being received, decoded, waiting or running now.",
    "queued": "Images waiting in the engine's line now.",
    "seconds_per_image": "The engine's time for one image, smoothed.",
    "last_inference_timestamp_seconds": "When an image was last scored; 0 before the first.",
}
HISTOGRAMS = {
    "wait_seconds": (SECONDS, "Time of an image in line."),
    "decode_seconds": (SECONDS, "Time of decoding and resizing one encoded image."),
    "run_seconds": (SECONDS, "Time of one call of the engine."),
    "total_seconds": (SECONDS, "Time of an inference request from its head to its answer."),
    "batch_images": (SIZES, "Images of one call of the engine."),
}
FAILURES = tuple(REASONS)
SERVER = {
    "connections": "Open HTTP connections.",
    "body_bytes": "Bytes of HTTP bodies that are being received or answered.",
    "gpu_used_bytes": "Memory in use on the engines' GPUs, by all programs; 0 without a GPU.",
    "log_lines_lost": "Lines of the access log that could not be written.",
    "restarts": "Processes of this server that ended and were started again.",
}
PRIVATE = ("progress", "allowed_s")  # of each process, for the supervisor alone (`sdpl.server.watchdog`)
SERVER_COUNTS = ("log_lines_lost", "restarts")  # never go back; the others are gauges
MOMENTS = ("last_inference_timestamp_seconds",)  # kept when the process that wrote them ends


class Counters:
    """Counts of all processes [processes, width] in shared memory."""

    def __init__(self, fd: int, processes: int, models: list[str], row: int = 0):
        """row: of the process that writes."""
        self._models = models
        self._at: dict[str, int] = {}  # of a name, in a model's part
        for name in (*COUNTS, *GAUGES, *(f"failures.{kind}" for kind in FAILURES)):
            self._at[name] = len(self._at)
        width = len(self._at)
        for name, (bounds, _) in HISTOGRAMS.items():
            self._at[name] = width
            width += len(bounds) + 2  # buckets, above all of them, sum
        self._width = width
        self._server = {name: len(models) * width + i for i, name in enumerate((*SERVER, *PRIVATE))}
        total = len(models) * width + len(self._server)
        self._all = np.frombuffer(mmap.mmap(fd, 8 * processes * total), np.float64).reshape(processes, total)
        self._own = self._all[row]
        self.in_hand_columns = [self._column(m, "in_hand") for m in range(len(models))]

    @staticmethod
    def memory(processes: int, models: int) -> int:
        """A file descriptor of memory for so many processes and models."""
        fd = os.memfd_create("sdpl-counters", os.MFD_CLOEXEC)
        width = len(COUNTS) + len(GAUGES) + len(FAILURES) + sum(len(b) + 2 for b, _ in HISTOGRAMS.values())
        os.ftruncate(fd, 8 * processes * (models * width + len(SERVER) + len(PRIVATE)))
        return fd

    def add(self, model: int, name: str, amount: float = 1) -> None:
        self._own[model * self._width + self._at[name]] += amount

    def set(self, model: int, name: str, value: float) -> None:
        self._own[model * self._width + self._at[name]] = value

    def observe(self, model: int, name: str, value: float) -> None:
        """Count a value in a histogram."""
        bounds = HISTOGRAMS[name][0]
        start = model * self._width + self._at[name]
        self._own[start + bisect_left(bounds, value)] += 1
        self._own[start + len(bounds) + 1] += value

    def add_server(self, name: str, amount: float = 1) -> None:
        self._own[self._server[name]] += amount

    def set_server(self, name: str, value: float) -> None:
        self._own[self._server[name]] = value

    def get_on(self, progress: float, allowed_s: float = 0.0) -> None:
        """Say that this process gets on: a number that is not the last one, nor 0. allowed_s: to the next one, where
        that may be long."""
        self.set_server("progress", progress)  # first: the next look may come before the other word
        self.set_server("allowed_s", allowed_s)

    def progress(self, row: int) -> tuple[float, float]:
        """What a process last said with `get_on`; 0 of one that begins."""
        return tuple(self._all[row, [self._server[name] for name in PRIVATE]].tolist())

    def clear_progress(self) -> None:
        """The next process of this row has said nothing yet."""
        self.set_server("progress", 0)

    def clear_gauges(self) -> None:
        """What a process that died had in its hands."""
        for model in range(len(self._models)):
            for name in GAUGES.keys() - set(MOMENTS):
                self.set(model, name, 0)
        self.set_server("connections", 0)
        self.set_server("body_bytes", 0)

    def columns(self, prefix: str) -> list[str]:
        """The names that begin so."""
        return [name for name in self._at if name.startswith(prefix)]

    def total(self, model: int, name: str) -> float:
        return float(self._all[:, self._column(model, name)].sum())

    def largest(self, model: int, name: str) -> float:
        return float(self._all[:, self._column(model, name)].max())

    def histogram(self, model: int, name: str) -> tuple[list[float], float]:
        """Counts by bucket, the last above all bounds, and the sum of the values."""
        start, buckets = self._column(model, name), len(HISTOGRAMS[name][0]) + 1
        summed = self._all[:, start : start + buckets + 1].sum(axis=0).tolist()
        return summed[:buckets], summed[buckets]

    def to_prometheus(self) -> Iterator[str]:
        """The lines of the text format, version 0.0.4."""
        for name, text in COUNTS.items():
            yield from prometheus_head(f"sdpl_{name}_total", "counter", text)
            yield from (f'sdpl_{name}_total{{model="{m}"}} {self.total(i, name):.0f}' for i, m in self._named())
        yield from prometheus_head("sdpl_failures_total", "counter", "Inference requests without scores, by reason.")
        for i, m in self._named():
            for kind in FAILURES:
                yield f'sdpl_failures_total{{model="{m}",reason="{kind}"}} {self.total(i, f"failures.{kind}"):.0f}'
        for name, text in GAUGES.items():
            value = self.total if name in ("in_hand", "queued") else self.largest
            yield from prometheus_head(f"sdpl_{name}", "gauge", text)
            yield from (f'sdpl_{name}{{model="{m}"}} {value(i, name):.13g}' for i, m in self._named())
        for name, (bounds, text) in HISTOGRAMS.items():
            yield from prometheus_head(f"sdpl_{name}", "histogram", text)
            for i, m in self._named():
                counts, summed = self.histogram(i, name)
                below = np.cumsum(counts).tolist()
                for bound, count in zip((*bounds, "+Inf"), below, strict=True):
                    yield f'sdpl_{name}_bucket{{model="{m}",le="{bound}"}} {count:.0f}'
                yield f'sdpl_{name}_sum{{model="{m}"}} {summed:.9g}'
                yield f'sdpl_{name}_count{{model="{m}"}} {below[-1]:.0f}'
        for name, text in SERVER.items():
            kind = "counter" if name in SERVER_COUNTS else "gauge"
            full = f"sdpl_{name}" + ("_total" if kind == "counter" else "")
            yield from prometheus_head(full, kind, text)
            yield f"{full} {self._all[:, self._server[name]].sum():.0f}"

    def _column(self, model: int, name: str) -> int:
        return model * self._width + self._at[name]

    def _named(self) -> Iterator[tuple[int, str]]:
        yield from enumerate(self._models)


def prometheus_head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
