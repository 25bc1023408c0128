"""How fast a run goes: the words beside its bar, and a warning when the loss rises."""

import sys
import time
from collections.abc import Sequence

import torch

RISE = 1.1  # times the lowest epoch's mean loss so far


class Pace:
    """Counts the images of a run. images: of one epoch, training and validation; epochs: that this process will do."""

    def __init__(self, train_images: int, val_images: int, epochs: int, device: torch.device):
        self.train_images, self.val_images, self.epochs, self.device = train_images, val_images, epochs, device
        self.images, self.seconds, self.losses = 0, 0.0, 0.0  # of this epoch, by this process
        self.last = time.monotonic()

    def start_epoch(self) -> None:
        self.images, self.seconds, self.losses = 0, 0.0, 0.0
        self.last = time.monotonic()

    def step(self, images: int, loss: float) -> None:
        """One step with so many images and this mean loss."""
        now = time.monotonic()
        self.images, self.seconds = self.images + images, self.seconds + now - self.last
        self.losses, self.last = self.losses + loss * images, now

    @property
    def images_per_s(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def note(self, epoch: int, done: int) -> str:
        """Beside the bar. epoch: from 0; done: images of it."""
        epoch_left = (self.train_images - done) / self.images_per_s
        per_epoch = (self.train_images + self.val_images) / self.images_per_s
        run_left = epoch_left + self.val_images / self.images_per_s + (self.epochs - epoch - 1) * per_epoch
        return (
            f"loss {self.losses / max(self.images, 1):.3f}, {self.images_per_s:.0f} images/s, "
            f"{memory_mb(self.device):,.0f} MB; left: epoch {duration(epoch_left)}, run {duration(run_left)}"
        )


def duration(seconds: float) -> str:
    """A length of time as a person says it: "42 s", "3 min", "5 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
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
