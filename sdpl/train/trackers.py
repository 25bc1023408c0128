"""Experiment trackers as callbacks: TensorBoard, Weights & Biases, MLflow. Each is imported only when asked for."""

from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.train.callbacks import Callback, StepLog
from sdpl.train.config import Config, flat
from sdpl.train.log import EpochLog


def trackers(config: Config, out: Path, total_steps: int) -> list[Callback]:
    """Those that `train.tensorboard` and `train.trackers` name. total_steps: done so far, by a run that is resumed."""
    found: list[Callback] = [TensorBoard(out, total_steps)] if config.train.tensorboard else []
    kinds = {"wandb": WeightsAndBiases, "mlflow": Mlflow}
    return found + [kinds[name](config, out) for name in config.train.trackers]


def values_of_step(step: StepLog) -> dict[str, float]:
    return {"step/loss": step.loss, "step/lr": step.lr, "step/images per s": step.images_per_s}


def values_of_epoch(epoch: EpochLog, ap: dict[str, float | None]) -> dict[str, float]:
    """The epoch's numbers, and the AP of each category that has one, in percent."""
    row = {"epoch/loss": epoch.train_loss, "epoch/val mAP": epoch.val_mAP, "epoch/lr": epoch.lr}
    return row | {f"AP/{name}": value for name, value in ap.items() if value is not None}


class TensorBoard(Callback):
    """Event files in `<out>/tensorboard`."""

    def __init__(self, out: Path, total_steps: int):
        """total_steps: done so far; of a run that is resumed, later events are taken back."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=total_steps)
        self.total_steps = total_steps

    def on_step(self, step: StepLog) -> None:
        self.total_steps = step.total_steps
        self._write(values_of_step(step))

    def on_epoch(self, epoch: EpochLog, ap: dict[str, float | None]) -> None:
        self._write(values_of_epoch(epoch, ap))

    def on_end(self, best: Path | None) -> None:
        self.writer.close()

    def _write(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.total_steps)


class WeightsAndBiases(Callback):
    """A run of Weights & Biases, named after the folder; project and mode from its own environment variables."""

    def __init__(self, config: Config, out: Path):
        wandb = _tracker("wandb")
        self.run: Any = wandb.init(name=out.resolve().name, dir=str(out), config=asdict(config))
        self.total_steps = 0

    def on_step(self, step: StepLog) -> None:
        self.total_steps = step.total_steps
        self.run.log(values_of_step(step), step=step.total_steps)

    def on_epoch(self, epoch: EpochLog, ap: dict[str, float | None]) -> None:
        self.run.log(values_of_epoch(epoch, ap), step=self.total_steps)

    def on_end(self, best: Path | None) -> None:
        self.run.finish(exit_code=0 if best else 1)


class Mlflow(Callback):
    """A run of MLflow, named after the folder; server and experiment from its own environment variables."""

    def __init__(self, config: Config, out: Path):
        self.mlflow: Any = _tracker("mlflow")
        self.mlflow.start_run(run_name=out.resolve().name)
        for start in range(0, len(rows := list(flat(asdict(config)).items())), 100):  # what one call takes
            self.mlflow.log_params({key: str(value)[:500] for key, value in rows[start : start + 100]})
        self.total_steps = 0

    def on_step(self, step: StepLog) -> None:
        self.total_steps = step.total_steps
        self.mlflow.log_metrics(_named(values_of_step(step)), step=step.total_steps)

    def on_epoch(self, epoch: EpochLog, ap: dict[str, float | None]) -> None:
        self.mlflow.log_metrics(_named(values_of_epoch(epoch, ap)), step=self.total_steps)

    def on_end(self, best: Path | None) -> None:
        self.mlflow.end_run("FINISHED" if best else "FAILED")


def _tracker(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"train.trackers names {name}, which is not installed: {install_line(name)}.") from None


def _named(values: dict[str, float]) -> dict[str, float]:
    """Names of metrics as MLflow takes them: letters, digits and a few signs."""
    return {"".join(c if c.isalnum() or c in "_-. /" else "_" for c in name): v for name, v in values.items()}
