"""Results that are written as they come, so that a run that was cut off goes on where it stopped."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED = 3  # exit status: call again
TRIES = 2  # of a result that fails, each in a process of its own


class Results:
    """A JSON file of named results. seconds: nothing is begun after so long."""

    def __init__(self, path: Path | None, seconds: float, **about: Any):
        self.path, self.until = path, time.monotonic() + seconds
        self.found: dict[str, Any] = {"about": about, "results": {}}
        if path is not None and path.exists():
            self.found["results"] = json.loads(path.read_text())["results"]
        found = self.found["results"].items()
        self.again = {name: result["tries"] for name, result in found if result.get("tries", TRIES) < TRIES}

    def has(self, name: str) -> bool:
        """Whether it is there, and not to be tried again by this process."""
        return name in self.found["results"] and name not in self.again

    def attempt(self, name: str, work: Callable[[], Any], needs_s: float = 0) -> None:
        """Add what `work` gives, unless it is there already. An exception is a result too, {"failed": why, "tries": n}:
        one that fails must not lose those after it, and the next process tries it once more. needs_s: it may take so
        long. Ends the process with status 3 where there is not so much time left, and where the GPU does not answer any
        more, which only a new process can change; what did that to it is not tried again."""
        if self.has(name):
            return
        if time.monotonic() + needs_s > self.until:
            sys.exit(UNFINISHED)
        try:
            self.add(name, work())
        except Exception as error:
            answers = gpu_answers()
            tries = self.again.get(name, 0) + 1 if answers else TRIES
            self.add(name, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "tries": tries})
            if not answers:
                sys.exit(UNFINISHED)

    def finish(self) -> None:
        """End the process with status 1 when a result failed, or says that something is wrong."""
        bad = [name for name, result in self.found["results"].items() if {"failed", "wrong"} & set(result)]
        if bad:
            sys.exit(f"failed: {', '.join(bad)}")

    def add(self, name: str, result: Any) -> None:
        self.found["results"][name] = result
        self.again.pop(name, None)
        print(name, json.dumps(result), flush=True)
        if self.path is not None:
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.found, indent=2) + "\n")
            temporary.replace(self.path)


def gpu_answers() -> bool:
    """Whether the GPU still works for this process: after an illegal address it does not."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True
