"""Reads one image and prints what it cost: run as a process of its own. bomb_cost.py PATH"""

import json
import sys
import time
from pathlib import Path

from sdpl.errors import UserError
from sdpl.preprocess import preprocess


def peak() -> int:
    """The most memory this process ever held, in bytes. (getrusage also counts what its parent held.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main(path: str) -> None:
    before, began = peak(), time.perf_counter()
    try:
        preprocess(path, 448)
        outcome = "read"
    except UserError as error:
        outcome = str(error)
    print(json.dumps({"outcome": outcome, "seconds": time.perf_counter() - began, "peak": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1])
