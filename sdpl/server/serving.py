"""A bundle made ready for serving: opened, proved on this machine, warmed."""

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.errors import UserError
from sdpl.manifest import MANIFEST
from sdpl.runtime import Recognizer
from sdpl.runtime.verify import prove
from sdpl.server.arena import PAGE, Geometry, fitting
from sdpl.server.settings import MIB, Settings
from sdpl.verification import describe

LEAST_SLOTS = 2  # one is received while another runs


@dataclass
class Serving:
    """One generation of a model. `generation` comes from the manifest's content, so every engine gives the same."""

    recognizer: Recognizer
    generation: int
    batch_sizes: tuple[int, ...]
    seconds_per_image: float
    proof: str

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.recognizer)

    def describe(self) -> dict[str, Any]:
        """What a front end must know, as plain values."""
        manifest = self.recognizer.bundle.manifest
        return {
            "generation": self.generation,
            "geometry": asdict(self.geometry),
            "categories": manifest.categories,
            "thresholds": manifest.thresholds,
            "target": self.recognizer.target,
            "backend": self.recognizer.backend.describe(),
            "batch_sizes": self.batch_sizes,
            "checkpoint_sha256": manifest.checkpoint_sha256,
            "created": manifest.created,
            "proof": self.proof,
        }


def make_ready(path: str, settings: Settings) -> Serving:
    """Open a bundle, check its hashes, run its proof and warm its batch sizes.

    Raises UserError for a bundle that is damaged, does not run here, fails its proof, or whose images and results need
    more memory than there is.
    """
    generation = manifest_hash(path)
    recognizer = Recognizer.open(path, settings.backend, settings.threads, settings.streams, settings.precision)
    try:
        _check_memory(path, geometry_of(recognizer), settings)
        proof = "skipped" if settings.skip_proof else describe(prove(recognizer))
        sizes = tuple(s for s in recognizer.backend.batch_sizes if s <= (settings.max_batch or s))
        sizes = sizes or (settings.max_batch or 1,)
        seconds = warm(recognizer, sizes)
    except BaseException:
        recognizer.close()
        raise
    return Serving(recognizer, generation, sizes, seconds, proof)


def geometry_of(recognizer: Recognizer) -> Geometry:
    manifest = recognizer.bundle.manifest
    return Geometry(manifest.preprocessing.image_size, len(manifest.categories), manifest.map_size)


def _check_memory(path: str, geometry: Geometry, settings: Settings) -> None:
    if fitting(settings.arena_bytes, geometry) < LEAST_SLOTS:
        arenas = settings.workers * len(settings.models) * len(settings.devices)
        needed = arenas * (LEAST_SLOTS * geometry.slot_bytes + 3 * PAGE)
        size = f"{geometry.slot_bytes / MIB:.2f} MiB ({geometry.categories} categories)"
        raise UserError(
            f"{path}: an image and its results take {size}; "
            f"{LEAST_SLOTS} for each front end, model and engine need --queue-mb {-(-needed // MIB)} or more."
        )


def warm(recognizer: Recognizer, sizes: tuple[int, ...]) -> float:
    """Run the batch sizes once, and one image again: the seconds of that one.

    On a GPU every size has its buffers and its graph to make. On a CPU a first call costs no more than others (the
    proof has run), so only one image is.
    """
    side = recognizer.image_size
    on_gpu = recognizer.backend.largest_on_device > 0
    for size in sizes if on_gpu else ():
        images = np.zeros((size, side, side, 3), np.uint8)
        recognizer.scores(images)
        recognizer.attention(images)
    one = np.zeros((1, side, side, 3), np.uint8)
    recognizer.attention(one)
    start = time.perf_counter()
    recognizer.scores(one)
    return time.perf_counter() - start


def manifest_hash(path: str) -> int:
    """64 bits of the SHA-256 of a bundle's manifest, which holds the hashes of all its files; 0 while there is none."""
    try:
        return int.from_bytes(hashlib.sha256((Path(path) / MANIFEST).read_bytes()).digest()[:8], "little")
    except OSError:
        return 0
