"""What a run writes down of every epoch: `log.csv`."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpl.evaluate.training import Epoch
from sdpl.files import replace_file


@dataclass(frozen=True)
class EpochLog:
    """One epoch, as `log.csv` and callbacks have it. train_loss: mean over the images; val_mAP in percent."""

    epoch: int
    lr: float
    train_loss: float
    val_mAP: float  # noqa: N815, the field writes it so; percent, on the known labels of the validation split
    unreadable: int  #: images skipped so far in this run, each counted once
    seconds: float  #: of learning and validating; writing the checkpoint comes on top

    def line(self, epochs: int) -> str:
        """The epoch as it is shown; epochs: of the whole run."""
        return (
            f"epoch {self.epoch:3d}/{epochs}  lr {self.lr:.5f}  loss {self.train_loss:8.4f}"
            f"  val mAP {self.val_mAP:5.1f}  {self.seconds:5.1f} s"
            + (f"  {self.unreadable} unreadable images skipped" if self.unreadable else "")
        )


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """`log.csv`, whole, from the history that the checkpoint carries: never a row twice or missing."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, EpochLog.__dataclass_fields__)
        writer.writeheader()
        writer.writerows(history)


def read_epochs(rows: Iterable[Mapping[str, Any]]) -> list[Epoch]:
    """The epochs of a history, or of the rows of `log.csv`, as the reports take them."""
    return [Epoch(int(r["epoch"]), float(r["lr"]), float(r["train_loss"]), float(r["val_mAP"])) for r in rows]


def read_csv(path: Path) -> list[Epoch]:
    """The epochs of a `log.csv`; none when there is no such file, or it is not of a run."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return read_epochs(csv.DictReader(stream))
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return []
