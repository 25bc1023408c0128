"""Planning past the machines at hand: a simulation of `sdpl-score` on 1 to 1000 workers.

    python benchmarks/scale_plan.py [--images-per-s 16] [--out docs/benchmarks/scale_plan.json]

Nothing here was run on a cluster. Fed with the rate of one worker, it plays the schedule of the Ray engine: each worker
takes the next shard; shards that fail come again in the next round. What it assumes, and prints beside its table:

- a shard takes its images over the rate, times a straggler's factor (log-normal; some workers stay slow);
- reading is overlapped with scoring, until all workers together ask for more than the object store gives;
- a worker is lost at a constant rate per hour and costs the shard it was in and the time to start again;
- the driver hands out a shard in a fixed time, one after the other.
"""

import heapq
import json
from pathlib import Path

import click
import numpy as np

ASSUMED = {
    "image_bytes": 160_000,  # of an encoded photo
    "store_bytes_per_s": 10e9,  # of the object store, for all workers together
    "worker_bytes_per_s": 100e6,  # of one worker's network
    "failures_per_worker_hour": 0.01,
    "restart_s": 60.0,
    "spread": 0.05,  # sigma of the log of a shard's time
    "slow_workers": 0.02,  # that take twice as long for everything
    "dispatch_s": 0.002,  # of the driver for a shard
    "start_s": 60.0,
}


def simulate(images: int, workers: int, shard_size: int, rate: float, seed: int = 0) -> dict[str, float]:
    """Hours, the share of worker time that scored something that counts, and lost shards of one job."""
    random, a = np.random.default_rng(seed), ASSUMED
    reading = min(a["worker_bytes_per_s"], a["store_bytes_per_s"] / workers) / a["image_bytes"]
    shard_s = shard_size / min(rate, reading)
    slow = np.where(random.random(workers) < a["slow_workers"], 2.0, 1.0)
    free = [(a["start_s"], worker) for worker in range(workers)]
    heapq.heapify(free)
    shards, driver, lost, ended = -(-images // shard_size), 0.0, 0, 0.0
    while shards:
        again = 0
        for _ in range(shards):
            begin, worker = heapq.heappop(free)
            driver = max(begin, driver) + a["dispatch_s"]
            took = shard_s * slow[worker] * random.lognormal(0.0, a["spread"])
            until_failure = random.exponential(3600 / a["failures_per_worker_hour"])
            if until_failure < took:
                lost, again = lost + 1, again + 1
                heapq.heappush(free, (driver + until_failure + a["restart_s"], worker))
            else:
                ended = max(ended, driver + took)
                heapq.heappush(free, (driver + took, worker))
        shards = again
        if again:  # the next round begins when this one has ended
            free = [(max(at, ended), worker) for at, worker in free]
            heapq.heapify(free)
    return {
        "hours": ended / 3600,
        "efficiency": images / rate / (ended * workers),
        "lost_shards": lost,
        "reading_limits": bool(reading < rate),
    }


@click.command()
@click.option("--images-per-s", default=19.6, help="Measured on one worker.")
@click.option("--images", default=1_000_000_000)
@click.option("--out", type=click.Path(path_type=Path))
def main(images_per_s: float, images: int, out: Path | None) -> None:
    rows = []
    for workers in (1, 10, 100, 1000):
        for shard_size in (1_000, 10_000, 100_000):
            result = simulate(images, workers, shard_size, images_per_s)
            rows.append({"workers": workers, "shard_size": shard_size, **result})
            click.echo(
                f"{workers:>5} workers, shards of {shard_size:>7,}: {result['hours']:>12,.1f} h, "
                f"{result['efficiency']:.1%} of the workers' time, {result['lost_shards']:>6,} shards lost and redone"
                + (", reading limits" if result["reading_limits"] else "")
            )
    if out is not None:
        content = {"images": images, "images_per_s_of_a_worker": images_per_s, "assumed": ASSUMED, "rows": rows}
        out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
