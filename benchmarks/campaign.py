"""The campaign: thousands of damaged files, kills, full disks and signals against the commands and the library.

    python benchmarks/campaign.py --minutes 60 --seed 0 --out campaign.json --parts images,inputs

The parts take turns until the minutes are over or each has its goal. The same seed gives the same cases. The file holds
the totals so far; a later call with it goes on behind them. What is not one line of ours, or loses something, is a
finding; exit status 1 if there are any.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy
from campaign_parts import images, inputs, kills, kills_of_jobs, kills_of_servers, stops, stored
from campaign_parts.material import material
from campaign_parts.running import Totals, run_cases

from sdpl.files import write_json

Part = Callable[[Totals, int, float, Path], None]
LIBRARIES = ("pillow", "numpy", "torch", "onnxruntime", "pyarrow", "safetensors")


def fuzz_images(totals: Totals, seed: int, until: float, work: Path) -> None:
    run_cases("images", 1, seed, totals, until, images.make_seeds, images.attack_case)


def fuzz_inputs(totals: Totals, seed: int, until: float, work: Path) -> None:
    made = material(work)
    run_cases("inputs", 2, seed, totals, until, lambda: inputs.Shared(made), inputs.case)


def fuzz_stored(totals: Totals, seed: int, until: float, work: Path) -> None:
    run_cases("stored", 12, seed, totals, until, stored.Stored, stored.case)


def repeated(what: Callable[..., None], number: int) -> Part:
    def run(totals: Totals, seed: int, until: float, work: Path) -> None:
        what(totals, numpy.random.default_rng((seed, number, totals.cases)), until, material(work))

    return run


PARTS: dict[str, tuple[Part, int]] = {  # with the cases that are their goal
    "images": (fuzz_images, 1_000_000),
    "inputs": (fuzz_inputs, 20_000),
    "stored": (fuzz_stored, 20_000),
    "kill-train": (repeated(kills.kill_training, 3), 200),
    "kill-export": (repeated(kills.kill_export, 4), 200),
    "kill-cache": (repeated(kills.kill_filling, 5), 200),
    "kill-sweep": (repeated(kills_of_jobs.kill_sweep, 9), 100),
    "kill-score": (repeated(kills_of_jobs.kill_score, 10), 200),
    "kill-serve": (repeated(kills_of_servers.kill_server, 11), 50),
    "signals": (repeated(stops.signals, 6), 200),
    "programs": (repeated(stops.programs, 13), 400),
    "disk": (repeated(stops.full_disk, 7), 50),
    "threads": (repeated(stops.threads, 8), 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parts together")
    parser.add_argument("--turn", type=float, default=1.0, help="minutes of one part, before the next has its turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("campaign.json"))
    parser.add_argument("--work", type=Path, default=Path("campaign-work"), help="folder for trained models and copies")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--endless", action="store_true", help="go on beyond the goals")
    given = parser.parse_args()
    content = json.loads(given.out.read_text()) if given.out.exists() else {"seed": given.seed, "parts": {}}
    if content["seed"] != given.seed:
        sys.exit(f"{given.out} is of seed {content['seed']}: choose another --out.")
    content["versions"] = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    content["machine"] = platform.machine()
    end, names = time.monotonic() + 60 * given.minutes, given.parts.split(",")
    while names and time.monotonic() < end:
        for name in list(names):
            part, goal = PARTS[name]
            totals = Totals(**content["parts"].get(name, {}))
            totals.most = 1 << 62 if given.endless else goal
            began = sum(os.times()[:4])
            part(totals, given.seed, min(end, time.monotonic() + 60 * given.turn), given.work)
            totals.cpu_s = round(totals.cpu_s + sum(os.times()[:4]) - began, 1)
            content["parts"][name] = asdict(totals)
            write_json(given.out, content)
            tell(name, totals)
            if totals.cases >= totals.most:
                names.remove(name)
    sys.exit(any(part["findings"] for part in content["parts"].values()))


def tell(name: str, totals: Totals) -> None:
    print(
        f"{name}: {totals.cases:,} cases in {totals.cpu_s:,.0f} s of CPU, {totals.fine:,} fine, {totals.refused:,} "
        f"refused, {len(totals.findings)} findings, slowest {totals.slowest_s:.2f} s, peak {totals.peak_mb} MB",
        flush=True,
    )
    for finding in totals.findings:
        print("  ", finding, flush=True)


if __name__ == "__main__":
    main()
