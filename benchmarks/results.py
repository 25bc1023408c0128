"""Results that are written as they come, so that a run that was cut off goes on where it stopped."""

import json
import time
from pathlib import Path
from typing import Any

UNFINISHED = 3  # exit status: call again


class Results:
    """A JSON file of named results. seconds: after so long, `enough` is true."""

    def __init__(self, path: Path | None, seconds: float, **about: Any):
        self.path, self.until = path, time.monotonic() + seconds
        self.found: dict[str, Any] = {"about": about, "results": {}}
        if path is not None and path.exists():
            self.found["results"] = json.loads(path.read_text())["results"]

    def enough(self) -> bool:
        return time.monotonic() > self.until

    def has(self, name: str) -> bool:
        return name in self.found["results"]

    def add(self, name: str, result: Any) -> None:
        self.found["results"][name] = result
        print(name, json.dumps(result), flush=True)
        if self.path is not None:
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.found, indent=2) + "\n")
            temporary.replace(self.path)
