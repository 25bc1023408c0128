"""How fast a run goes: an estimate after its first steps, the words beside its bar, a warning when the loss rises."""

import sys
import time
from collections.abc import Sequence

import torch

from sdpl.text import counted

SETTLED = 10  # steps, after which the run's time is estimated
RISE = 1.1  # times the lowest epoch's mean loss so far


class Pace:
    """Counts the images of a run. images: of one epoch, training and validation; epochs: that this process will do."""

    def __init__(self, train_images: int, val_images: int, epochs: int, device: torch.device):
        self.train_images, self.val_images, self.epochs, self.device = train_images, val_images, epochs, device
        self.images, self.seconds, self.losses = 0, 0.0, 0.0  # of this epoch, by this process
        self.steps, self.first = 0, (0, 0.0)  # done by this process; the first one's images and seconds
        self.is_estimated = False
        self.last = time.monotonic()

    def start_epoch(self) -> None:
        self.images, self.seconds, self.losses = 0, 0.0, 0.0
        self.last = time.monotonic()

    def step(self, images: int, loss: float) -> None:
        """One step with so many images and this mean loss."""
        now = time.monotonic()
        self.steps += 1
        if self.steps == 1:
            self.first = images, now - self.last
        self.images, self.seconds = self.images + images, self.seconds + now - self.last
        self.losses, self.last = self.losses + loss * images, now

    @property
    def images_per_s(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def note(self, epoch: int, done: int) -> str:
        """Beside the bar. epoch: from 0; done: images of it."""
        epoch_left = (self.train_images - done) / self.images_per_s
        run_left = self._images_left(epoch, done) / self.images_per_s
        return (
            f"loss {self.losses / max(self.images, 1):.3f}, {self.images_per_s:.0f} images/s, "
            f"{memory_mb(self.device):,.0f} MB; left: epoch {duration(epoch_left)}, run {duration(run_left)}"
        )

    def estimate(self, epoch: int, done: int) -> str | None:
        """What the run will take, once: from its first steps, but for the very first, in which much is loaded.
        Validation is taken to be as slow as training, so it is rather too long. epoch and done: as `note`."""
        if self.is_estimated or (self.steps < SETTLED and done < self.train_images):
            return None
        self.is_estimated = True
        images, seconds = self.first if self.steps > 1 else (0, 0.0)
        rate = (self.images - images) / max(self.seconds - seconds, 1e-9)
        epoch_s, left_s = (self.train_images + self.val_images) / rate, self._images_left(epoch, done) / rate
        return (
            f"estimate after {counted(self.steps, 'step', 'steps')}: {duration(epoch_s)} an epoch, "
            f"{duration(left_s)} to the end of the run, at {rate:,.3g} images/s; "
            f"memory up to now: {memory_mb(self.device):,.0f} MB"
        )

    def _images_left(self, epoch: int, done: int) -> int:
        """Of the run, with those that are validated on."""
        return (self.epochs - epoch) * (self.train_images + self.val_images) - done


def duration(seconds: float) -> str:
    """A length of time as a person says it: "42 s", "3 min", "5 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "under 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory_mb(device: torch.device) -> float:
    """The most memory used so far: of the GPU by this process, or of the process itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def rising(losses: Sequence[float]) -> str | None:
    """A warning when the newest of the epochs' mean losses lies clearly above the lowest, said once for each rise."""
    if len(losses) < 2 or not losses[-1] > RISE * min(losses[:-1]):
        return None
    if len(losses) > 2 and losses[-2] > RISE * min(losses[:-2]):
        return None
    return (
        f"warning: the loss rises, from {min(losses[:-1]):.4g} to {losses[-1]:.4g} in epoch {len(losses)}: "
        "if it goes on, lower train.lr."
    )
