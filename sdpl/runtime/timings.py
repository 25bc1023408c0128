"""How fast each target of a bundle is on this machine: measured once, kept in the bundle's cache, read by `auto`.

One file a machine: a bundle may lie on a disk that several share. A time counts only while the target's files, the
machine and the versions are those that were measured.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from sdpl.bundle import Bundle
from sdpl.files import replace_file
from sdpl.manifest import CACHE
from sdpl.runtime.machine import fingerprint

MEASURE = "sdpl-verify measures it"


class Timing(BaseModel):
    """Medians of one target, from pixels in memory to scores, all cores in one stream. files: what was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: str
    one_ms: PositiveFloat  # of a batch of 1
    batch: PositiveInt  # the batch that throughput was measured with
    batch_ms: PositiveFloat  # of such a batch

    def image_ms(self, throughput: bool) -> float:
        """What an image costs: alone, or in a large batch."""
        return self.batch_ms / self.batch if throughput else self.one_ms

    def __str__(self) -> str:
        return f"{self.one_ms:.1f} ms an image, {1000 * self.batch / self.batch_ms:.1f} images/s at batch {self.batch}"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    machine: str
    targets: dict[str, Timing]


def timings(bundle: Bundle, device: int = 0) -> dict[str, Timing]:
    """The times that count here, with the GPU of this number, by target; none from a file that is damaged or of another
    machine or version."""
    try:
        kept = _Kept.model_validate_json(_path(bundle, device).read_bytes())
    except (OSError, ValidationError):
        return {}
    if kept.machine != fingerprint(device):
        return {}
    return {
        name: timing
        for name, timing in kept.targets.items()
        if name in bundle.manifest.targets and timing.files == files_of(bundle, name)
    }


def keep(bundle: Bundle, measured: Mapping[str, Timing], device: int = 0) -> None:
    """Write targets' times beside those that count. Raises UserError when the bundle cannot be written."""
    kept = _Kept(machine=fingerprint(device), targets={**timings(bundle, device), **measured})
    with replace_file(_path(bundle, device)) as temporary:
        temporary.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")


def files_of(bundle: Bundle, name: str) -> str:
    """A hash of what a target runs: the hashes of its files."""
    files = sorted(set(bundle.manifest.targets[name].files.values()))
    return hashlib.sha256("".join(bundle.manifest.files[file].sha256 for file in files).encode()).hexdigest()[:16]


def _path(bundle: Bundle, device: int) -> Path:
    return bundle.path / CACHE / f"timings-{fingerprint(device)}.json"
