"""What a run writes down while it goes: `log.csv`, and TensorBoard's events if asked for."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpl.files import replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class EpochLog:
    epoch: int
    lr: float
    train_loss: float
    val_mAP: float  # noqa: N815, the field writes it so; percent, on the known labels of the validation split
    unreadable: int  # images skipped so far in this run, each counted once
    seconds: float

    def line(self, epochs: int) -> str:
        """The epoch as it is shown; epochs: of the whole run."""
        return (
            f"epoch {self.epoch:3d}/{epochs}  lr {self.lr:.5f}  loss {self.train_loss:8.4f}"
            f"  val mAP {self.val_mAP:5.1f}  {self.seconds:5.1f} s"
            + (f"  {self.unreadable} unreadable images skipped" if self.unreadable else "")
        )


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """`log.csv`, whole, from the history that the checkpoint carries: never a row twice or missing."""
    with replace_file(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, EpochLog.__dataclass_fields__)
        writer.writeheader()
        writer.writerows(history)


class Events:
    """TensorBoard's event files in `<out>/tensorboard`, or nothing when switched off."""

    def __init__(self, out: Path, on: bool, step: int):
        """step: the next one; of a run that is resumed, later events are taken back."""
        self.writer: SummaryWriter | None = None
        if on:
            from torch.utils.tensorboard import SummaryWriter as Writer

            self.writer = Writer(str(out / "tensorboard"), purge_step=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()
