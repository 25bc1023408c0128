"""The page of a run, `sdpl-train --report`, from what its newest checkpoint carries."""

from collections.abc import Sequence
from pathlib import Path

from sdpl.data.images import LabelledImages
from sdpl.evaluate.metrics import mean_average_precision_error
from sdpl.evaluate.report.training import write_training_report
from sdpl.evaluate.training import Training
from sdpl.train.config import TrainConfig
from sdpl.train.history import History
from sdpl.train.keeping import kept_epoch, last_is_kept, why_kept
from sdpl.train.log import read_epochs
from sdpl.train.pace import duration
from sdpl.train.snapshots import opened


def write_run_report(
    path: Path,
    name: str,
    config: TrainConfig,
    history: History,
    splits: tuple[LabelledImages, LabelledImages],
    facts: Sequence[str],
) -> None:
    """Write the page of a run's epochs. splits: training and validation. facts: the run's summary.

    Raises UserError when the file cannot be written.
    """
    train, val = splits
    run = Training(
        name=name,
        planned=config.epochs,
        epochs=read_epochs(history.epochs),
        ap=history.ap_by_epoch(),
        kept=kept_epoch(history.epochs, last_is_kept(config.keep, val)),
        reason=why_kept(config.keep, val),
        error=100 * mean_average_precision_error(val.labels),
        took=duration(sum(row["seconds"] for row in history.epochs)),
        facts=facts,
        train=train,
        val=val,
        attention=opened(history.snapshots, val),
    )
    write_training_report(path, run)
