"""The page of a run, `sdpl-train --report`, from what its newest checkpoint carries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpl.data.images import LabelledImages
from sdpl.evaluate.metrics import mean_average_precision_error
from sdpl.evaluate.report.training import write_training_report
from sdpl.evaluate.training import AP, Training
from sdpl.train.config import TrainConfig
from sdpl.train.keeping import kept_epoch, last_is_kept, why_kept
from sdpl.train.log import read_epochs
from sdpl.train.pace import duration
from sdpl.train.snapshots import opened


def write_run_report(
    path: Path,
    name: str,
    config: TrainConfig,
    history: Sequence[dict[str, Any]],
    ap_history: Sequence[AP],
    snapshots: Sequence[dict[str, Any]],
    splits: tuple[LabelledImages, LabelledImages],
    facts: Sequence[str],
) -> None:
    """Write the page of the epochs in `history`. splits: training and validation. facts: the run's summary.

    Raises UserError when the file cannot be written.
    """
    train, val = splits
    unknown: list[AP] = [{} for _ in range(len(history) - len(ap_history))]  # of epochs before these were kept
    run = Training(
        name=name,
        planned=config.epochs,
        epochs=read_epochs(history),
        ap=[*unknown, *ap_history],
        kept=kept_epoch(history, last_is_kept(config.keep, val)),
        reason=why_kept(config.keep, val),
        error=100 * mean_average_precision_error(val.labels),
        took=duration(sum(row["seconds"] for row in history)),
        facts=facts,
        train=train,
        val=val,
        attention=opened(snapshots, val),
    )
    write_training_report(path, run)
