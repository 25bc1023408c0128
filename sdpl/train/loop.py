"""The training loop: SGD, warm-up and cosine, one CSV row per epoch, best and last checkpoint, resume."""

import csv
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.train.checkpoint import load_checkpoint, save_checkpoint
from sdpl.train.config import Config, Split, TrainConfig
from sdpl.train.data import LabelledImages, Unreadable, batches, require_known_labels
from sdpl.train.evaluate import score_all
from sdpl.train.formats import read_labels
from sdpl.train.losses import partial_asymmetric_loss, partial_bce_loss
from sdpl.train.metrics import mean_average_precision
from sdpl.train.model import PartialLabelModel, new_model
from sdpl.train.partial import mask_labels

PROOF_IMAGES = 8
CHECKPOINTS = ("model.ckpt", "last.ckpt")


@dataclass(frozen=True)
class EpochLog:
    epoch: int
    lr: float
    train_loss: float
    val_map: float  # percent, on the known labels of the validation split
    unreadable: int  # images skipped so far in this run, each counted once
    seconds: float


def train(config: Config, out: Path, resume: bool = False, console: Console | None = None) -> Path:
    """Train as configured into the folder `out`; returns the best checkpoint, `out/model.ckpt`.

    `last.ckpt` holds the newest epoch; `resume` goes on from it and ends with the same weights as a run that
    was never stopped. Raises UserError for anything wrong with the configuration or the data.
    """
    console = console or Console(stderr=True)
    torch.manual_seed(config.train.seed)
    device = choose_device(config.train.device)
    train_data, val_data = load_data(config)
    require_known_labels(train_data)
    model = new_model(config.model, train_data.categories).to(device)
    mend = "Mend or remove it and add --resume; or, with data.unreadable: skip, such images are left out and counted."
    unreadable = Unreadable(config.data.unreadable, partial(console.print, markup=False, soft_wrap=True), mend)
    run = _Run(config, out, model, train_data, val_data, device, unreadable)
    if resume:
        run.restore()
    elif any((out / name).exists() for name in CHECKPOINTS):
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out.")
    else:
        run.start_files()
    if not (val_data.labels > 0).any():
        console.print("no validation image has a known positive: without a validation mAP, the newest epoch is kept.")
    if not run.parameters:
        console.print("nothing is trainable: the checkpoint is written as it is.")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        while run.epoch < config.train.epochs:
            log = run.run_epoch(progress)
            console.print(
                f"epoch {log.epoch:3d}/{config.train.epochs}  lr {log.lr:.5f}  loss {log.train_loss:8.4f}"
                f"  val mAP {log.val_map:5.1f}  {log.seconds:5.1f} s"
                + (f"  {log.unreadable} unreadable images skipped" if log.unreadable else "")
            )
    return out / "model.ckpt"


def load_data(config: Config) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation data. Labels of the training set are masked before any image is held out, so a
    held-out validation split knows no more labels than the user would have."""
    data = config.data
    full = read_split(data.train, data.categories)
    train = full.with_labels(mask_labels(full.labels, data.known_proportion, data.mask_seed))
    if data.val is not None:
        return train, read_split(data.val, train.categories)
    order = np.random.RandomState(data.mask_seed).permutation(len(train))
    held_out = math.ceil(data.val_fraction * len(train))
    if held_out >= len(train):
        raise UserError(f"{len(train)} images are too few to hold out {data.val_fraction:.0%} of them; name data.val.")
    return train.subset(sorted(order[held_out:])), train.subset(sorted(order[:held_out]))


def read_split(split: Split, categories: tuple[str, ...] | None) -> LabelledImages:
    return read_labels(split.annotations, split.images, split.format, categories)


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the CPU. Raises UserError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device = {name!r} cannot be used ({reason}); 'auto' takes what is there.") from None
    return device


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The rate of an epoch (from 0): constant during warm-up, then the cosine over all epochs."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


class _Run:
    """State of one training run: what a checkpoint saves and restores, and the work of an epoch."""

    def __init__(self, config: Config, out: Path, model: PartialLabelModel, train_data, val_data, device, unreadable):
        self.config, self.out, self.model, self.device = config, out, model, device
        self.unreadable: Unreadable = unreadable
        self.train_data, self.val_data = train_data, val_data
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=config.train.lr, momentum=config.train.momentum, weight_decay=config.train.weight_decay
        )
        self.epoch = 0
        self.best_map = -math.inf
        self.history: list[dict] = []
        self.shuffle = torch.Generator().manual_seed(config.train.seed)
        self.fingerprint = _fingerprint(train_data, val_data)
        self.proof_images = self._choose_proof_images()

    def start_files(self) -> None:
        with replace_file(self.out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(asdict(self.config), sort_keys=False))

    def run_epoch(self, progress: Progress) -> EpochLog:
        started = time.monotonic()
        lr = learning_rate(self.config.train, self.epoch)
        loss = self._train_epoch(lr, progress)
        val_map = self._validate(progress)
        self.epoch += 1
        log = EpochLog(self.epoch, lr, loss, val_map, len(self.unreadable.images), time.monotonic() - started)
        self.history.append(asdict(log))
        is_best = not val_map <= self.best_map  # without any validation mAP (nan) the newest is taken
        if is_best and math.isfinite(val_map):
            self.best_map = val_map
        for name in ("model.ckpt", "last.ckpt") if is_best else ("last.ckpt",):  # a stop between them loses no best
            save_checkpoint(self.out / name, self.config, self.model, self.proof_images, self._resume_state())
        self._write_log()
        return log

    def restore(self) -> None:
        """Take the state of `last.ckpt`. Raises UserError when its configuration is not this one."""
        content = load_checkpoint(self.out / "last.ckpt")
        differences = _differences(content["config"], asdict(self.config))
        if content["resume"]["data"] != self.fingerprint:
            differences.append("data: other images, labels or categories than then")
        if not (self.out / "model.ckpt").exists():
            raise UserError(f"{self.out}/model.ckpt, the best checkpoint, is missing: put it back or train anew.")
        if differences:
            raise UserError(f"{self.out}/last.ckpt was trained with another configuration: {'; '.join(differences)}.")
        self.model.load_state_dict(content["state"])
        state = content["resume"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.best_map, self.history = state["epoch"], state["best_map"], state["history"]
        self.shuffle.set_state(state["shuffle"])
        torch.set_rng_state(state["rng"])

    def _write_log(self) -> None:
        """`log.csv`, whole, from the history that the checkpoint carries: never a row twice or missing."""
        with replace_file(self.out / "log.csv") as temporary, open(temporary, "w", newline="") as stream:
            writer = csv.DictWriter(stream, EpochLog.__dataclass_fields__)
            writer.writeheader()
            writer.writerows(self.history)

    def _resume_state(self) -> dict:
        return {
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "best_map": self.best_map,
            "history": self.history,
            "data": self.fingerprint,
            "shuffle": self.shuffle.get_state(),
            "rng": torch.get_rng_state(),
        }

    def _train_epoch(self, lr: float, progress: Progress) -> float:
        """One pass over the training data; returns the mean loss."""
        if not self.parameters:
            return float("nan")
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train()
        order = torch.randperm(len(self.train_data), generator=self.shuffle).tolist()
        loader = batches(
            self.train_data.subset(order),
            self.config.model.image_size,
            self.config.train.batch_size,
            self.config.data.workers,
            self.unreadable,
        )
        task = progress.add_task(f"epoch {self.epoch + 1} training", total=len(self.train_data))
        total, seen = 0.0, 0
        for images, labels in loader:
            logits = self.model(torch.from_numpy(images).to(self.device))  # [B,C]
            loss = self._loss(logits, torch.from_numpy(labels).to(self.device))
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is {loss.item()} in epoch {self.epoch + 1}: lower train.lr or the temperature."
                )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(images)
            seen += len(images)
            progress.advance(task, len(images))
        progress.remove_task(task)
        if not seen:
            raise UserError(
                f"none of {len(self.train_data)} training images could be read; `sdpl-data check` says why."
            )
        return total / seen

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        config, probability = self.config.train, self.config.model.probability
        if config.loss == "partial-bce":
            return partial_bce_loss(logits, labels, probability)
        return partial_asymmetric_loss(logits, labels, config.gamma_pos, config.gamma_neg, config.margin, probability)

    def _validate(self, progress: Progress) -> float:
        """mAP in percent on the known labels of the validation split."""
        self.model.eval()
        task = progress.add_task(f"epoch {self.epoch + 1} validation", total=len(self.val_data))
        scores = score_all(
            self.model.scorer(),
            self.val_data,
            self.config.model.image_size,
            self.config.train.batch_size,
            lambda done: progress.advance(task, done),
            self.unreadable,
        )
        progress.remove_task(task)
        if not np.isfinite(scores).all():
            raise UserError(
                f"the model diverged in epoch {self.epoch + 1} (its scores are not numbers): lower train.lr."
            )
        return 100 * mean_average_precision(scores, self.val_data.without(self.unreadable.images).labels)

    def _choose_proof_images(self) -> torch.Tensor:
        """uint8 [N,S,S,3]: the first held-out images, which the export is verified on."""
        size = self.config.model.image_size
        for images, _ in batches(self.val_data, size, PROOF_IMAGES, unreadable=self.unreadable):
            return torch.from_numpy(images)
        raise UserError(f"none of {len(self.val_data)} validation images could be read; `sdpl-data check` says why.")


def _fingerprint(*splits: LabelledImages) -> str:
    """SHA-256 of what is trained and validated on: categories, image names and labels, in order."""
    digest = hashlib.sha256(repr(splits[0].categories).encode())
    for data in splits:
        digest.update(repr([path.name for path in data.images]).encode() + data.labels.tobytes())
    return digest.hexdigest()


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Every key whose value differs, as "key: old -> new"."""
    rows = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            rows += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return rows
