"""Timing a bundle's targets on this machine, for `auto` (`sdpl.runtime.timings`)."""

from dataclasses import replace

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.manifest import Profile
from sdpl.runtime.backends import Wanted, candidates, open_backend
from sdpl.runtime.bench import measure
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.timings import Timing, files_of, keep, timings

SECONDS = 0.2  # of each batch; at least RUNS calls
RUNS = 5


def measure_target(recognizer: Recognizer, images: np.ndarray) -> Timing:
    """Time an opened target on images uint8 [N,S,S,3]: in batches of 1, and of what its profile is tuned for."""
    bundle, name = recognizer.bundle, recognizer.target
    batch = (bundle.manifest.targets[name].profile or Profile()).opt
    medians = []
    for size in (1, batch):
        some = np.ascontiguousarray(images[np.arange(size) % len(images)])
        times_ms, _ = measure(lambda some=some: recognizer.scores(some), SECONDS, RUNS)  # type: ignore[misc]
        medians.append(float(np.median(times_ms)))
    return Timing(files=files_of(bundle, name), one_ms=medians[0], batch=batch, batch_ms=medians[1])


def measure_missing(bundle: Bundle, wanted: Wanted) -> None:
    """Time every target that may be taken and has no time on this machine, on the images of the bundle's proof, and
    keep that in its cache; those that do not run here are skipped. Raises UserError when it cannot be written."""
    asked, _, _ = candidates(bundle, wanted)
    known = timings(bundle, wanted.device)
    for name in asked if len(asked) > 1 else ():
        if name in known:
            continue
        try:
            recognizer = Recognizer(bundle, open_backend(bundle, replace(wanted, name=name)), wanted.device)
        except UserError:
            continue
        with recognizer:
            timing = measure_target(recognizer, bundle.proof()[0])
        keep(bundle, {name: timing}, wanted.device)
