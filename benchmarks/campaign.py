"""The campaign: thousands of damaged files, kills, full disks and signals against the commands and the library.

    python benchmarks/campaign.py --minutes 5 --seed 0 --out campaign.json --parts images,inputs

The same seed gives the same cases. The file holds the totals so far; a later call with it goes on behind them. What is
not one line of ours, or loses something, is a finding; exit status 1 if there are any.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy
import PIL
from campaign_parts import images, inputs, kills, stops
from campaign_parts.material import material
from campaign_parts.running import Totals, run_cases

Part = Callable[[Totals, int, float, Path], None]


def fuzz_images(totals: Totals, seed: int, until: float, work: Path) -> None:
    run_cases("images", 1, seed, totals, until, images.make_seeds, images.attack_case)


def fuzz_inputs(totals: Totals, seed: int, until: float, work: Path) -> None:
    made = material(work)
    run_cases("inputs", 2, seed, totals, until, lambda: inputs.Shared(made), inputs.case)


def repeated(what: Callable[..., None], number: int) -> Part:
    def run(totals: Totals, seed: int, until: float, work: Path) -> None:
        what(totals, numpy.random.default_rng((seed, number, totals.cases)), until, material(work))

    return run


PARTS: dict[str, Part] = {
    "images": fuzz_images,
    "inputs": fuzz_inputs,
    "kill-train": repeated(kills.kill_training, 3),
    "kill-export": repeated(kills.kill_export, 4),
    "kill-cache": repeated(kills.kill_filling, 5),
    "signals": repeated(stops.signals, 6),
    "disk": repeated(stops.full_disk, 7),
    "threads": repeated(stops.threads, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("campaign.json"))
    parser.add_argument("--work", type=Path, default=Path("campaign-work"), help="folder for trained models and copies")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    given = parser.parse_args()
    content = json.loads(given.out.read_text()) if given.out.exists() else {"seed": given.seed, "parts": {}}
    if content["seed"] != given.seed:
        sys.exit(f"{given.out} is of seed {content['seed']}: choose another --out.")
    content["versions"] = {"python": platform.python_version(), "pillow": PIL.__version__, "numpy": numpy.__version__}
    content["machine"] = platform.machine()
    names = given.parts.split(",")
    for name in names:
        totals = Totals(**content["parts"].get(name, {}))
        PARTS[name](totals, given.seed, time.monotonic() + 60 * given.minutes / len(names), given.work)
        content["parts"][name] = asdict(totals)
        given.out.write_text(json.dumps(content, indent=2) + "\n")
        print(
            f"{name}: {totals.cases:,} cases, {totals.fine:,} fine, {totals.refused:,} refused, "
            f"{len(totals.findings)} findings, slowest {totals.slowest_s:.2f} s, peak {totals.peak_mb} MB"
        )
        for finding in totals.findings:
            print("  ", finding)
    sys.exit(any(part["findings"] for part in content["parts"].values()))


if __name__ == "__main__":
    main()
