"""What a training run tells while it goes: one small protocol that TensorBoard, W&B, MLflow and own code follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpl.train.log import EpochLog


@dataclass(frozen=True)
class StepLog:
    """One optimiser step. epoch and step count from 1; total_steps: of the whole run so far."""

    epoch: int
    step: int
    total_steps: int
    loss: float  #: mean over the images of the batch
    lr: float
    images_per_s: float


class Callback:
    """Follows a run: subclass it, override what is needed, and pass it to `sdpl.train.loop.train`.

    Of the processes of one run only the first one calls it. What it raises ends the run.
    """

    def on_step(self, step: StepLog) -> None:
        """After every optimiser step."""

    def on_epoch(self, epoch: EpochLog, ap: dict[str, float | None]) -> None:
        """After every epoch's validation and checkpoint. ap: of each category in percent, None without a positive."""

    def on_end(self, best: Path | None) -> None:
        """Once, at the end. best: the checkpoint; None when an error or Ctrl-C ended the run."""


class Callbacks(Callback):
    """Several as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = callbacks

    def on_step(self, step: StepLog) -> None:
        for callback in self.callbacks:
            callback.on_step(step)

    def on_epoch(self, epoch: EpochLog, ap: dict[str, float | None]) -> None:
        for callback in self.callbacks:
            callback.on_epoch(epoch, ap)

    def on_end(self, best: Path | None) -> None:
        for callback in self.callbacks:
            callback.on_end(best)
