"""A model's line in an engine: who is in it, and how a batch of it is run where its images lie."""

import time
from dataclasses import dataclass

import numpy as np

from sdpl.server.batcher import Batcher
from sdpl.server.counters import Counters
from sdpl.server.fronts import Front
from sdpl.server.serving import Serving

SMOOTHING = 0.2  # weight of the newest batch in the time of one image


@dataclass(frozen=True)
class Row:
    """One image in line: whose, and where it lies."""

    front: Front
    slot: int
    attention: bool


@dataclass(eq=False)
class Line:
    """A bundle that serves, with its line of rows. number: its own in this process; the same bundle loaded again has
    another. retired_at: the announcement after which no more rows come."""

    number: int
    model: int
    serving: Serving
    batcher: Batcher[Row]
    retired_at: int | None = None


def score(line: Line, rows: list[Row]) -> None:
    """Run the rows and write their results where their images lie."""
    arenas = [row.front.arenas[line.number] for row in rows]
    first, slots = rows[0], [row.slot for row in rows]
    neighbours = slots == list(range(first.slot, first.slot + len(rows))) and all(a is arenas[0] for a in arenas)
    if neighbours:
        images = arenas[0].images[first.slot : first.slot + len(rows)]  # [B,S,S,3], no copy
    else:
        images = np.stack([arena.images[slot] for arena, slot in zip(arenas, slots, strict=True)])  # [B,S,S,3]
    attention = None
    if any(row.attention for row in rows):
        scores, attention = line.serving.recognizer.attention(images)  # [B,C], [B,C,h,w]
    else:
        scores = line.serving.recognizer.scores(images)  # [B,C]
    for i, (arena, slot) in enumerate(zip(arenas, slots, strict=True)):
        arena.scores[slot] = scores[i]
        if attention is not None and rows[i].attention:
            arena.attention[slot] = attention[i]


def count(counters: Counters, line: Line, batch: list[tuple[Row, int]], start: int, run_ns: int) -> None:
    """Count a batch that has run."""
    model = line.model
    line.serving.seconds_per_image += SMOOTHING * (run_ns / 1e9 / len(batch) - line.serving.seconds_per_image)
    counters.set(model, "seconds_per_image", line.serving.seconds_per_image)
    counters.set(model, "last_inference_timestamp_seconds", round(time.time(), 3))
    counters.set(model, "queued", len(line.batcher))
    counters.add(model, "batches")
    counters.add(model, "images", len(batch))
    counters.observe(model, "run_seconds", run_ns / 1e9)
    counters.observe(model, "batch_images", len(batch))
    for _, arrival in batch:
        counters.observe(model, "wait_seconds", max(0, start - arrival) / 1e9)
