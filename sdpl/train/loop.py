"""The training loop: warm-up and cosine, one CSV row per epoch, best and last checkpoint, exact resuming."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sdpl.data.images import LabelledImages, evenly_taken, require_known_labels
from sdpl.data.reading import Unreadable, batches
from sdpl.errors import UserError, listed
from sdpl.evaluate.metrics import per_category_average_precision
from sdpl.evaluate.thresholds import DEFAULT, fit_thresholds
from sdpl.files import only_one_run, replace_file, share_file
from sdpl.progress import Progress, Report, Steps, silent
from sdpl.train.callbacks import Callback, Callbacks, StepLog
from sdpl.train.checkpoint import load_state, save_checkpoint
from sdpl.train.config import Config, TrainConfig
from sdpl.train.distributed import Processes, choose_device, processes
from sdpl.train.features.sources import FeatureMaps, FeatureSource, require_precision
from sdpl.train.history import History
from sdpl.train.initial import initialise
from sdpl.train.keeping import Keeper, too_coarse
from sdpl.train.log import EpochLog, write_csv
from sdpl.train.model import PartialLabelModel, new_model
from sdpl.train.pace import Pace, rising
from sdpl.train.resume import fingerprint, require_new, resumable
from sdpl.train.snapshots import snapshot, snapshot_epochs
from sdpl.train.splits import load_data
from sdpl.train.step import Learner, NotFiniteError, explain
from sdpl.train.summary import summary
from sdpl.train.trackers import trackers
from sdpl.train.validation import Validation

PROOF_IMAGES = 8
START_IMAGES = 32  # that the attention's start is measured on
FIX = (
    "Repair it (--resume goes on after a finished epoch), or set data.unreadable: skip, which leaves such images out; "
    "sdpl-data check names them all."
)


def train(
    config: Config,
    out: Path,
    resume: bool = False,
    report: Report = silent,
    epoch_lines: bool = True,
    best_too: bool = False,
    callbacks: Sequence[Callback] = (),
    init: Path | None = None,
    page: Path | None = None,
) -> Path:
    """Train as configured into the folder `out`; returns the checkpoint that `train.keep` names, `out/model.ckpt`.

    `last.ckpt` holds the newest epoch (or step, with `checkpoint_steps`); `resume` goes on from it and ends with the
    same weights as a run that was never stopped. Started by torchrun, the processes share every batch and every
    validation; the first one writes and reports; those that torchrun starts in place of lost ones resume by themselves.
    epoch_lines: report what the run is made of, a line for each epoch, and which one is kept. best_too: also write
    `best.ckpt`, of the best validation mAP whatever is kept. callbacks: follow the first process. init: a checkpoint
    whose weights a new run starts from. page: also write the run's report to this HTML file, of all its epochs. Raises
    UserError for anything wrong with the configuration or the data.
    """
    device = choose_device(config.train.device)
    require_precision(config.train.precision, device)
    with processes(device) as group, ExitStack() as held:
        report = report if group.is_first else silent
        torch.manual_seed(config.train.seed)
        train_data, val_data = load_data(config)
        require_known_labels(train_data)
        digest = fingerprint(train_data, val_data)
        if group.is_first:
            held.enter_context(only_one_run(out))
        resume = resume or (group.began(str(out)) and (out / "last.ckpt").exists())
        content = resumable(config, out, digest, report) if resume else None
        if not resume:
            require_new(out)
        group.barrier()  # until every process has seen what there is
        group.begin(str(out))
        model = new_model(config.model, train_data.categories)
        for line in initialise(model, init) if init is not None else ():
            report(Progress(line))
        model = model.to(device)
        if epoch_lines and (warning := too_coarse(val_data)) and config.train.keep == "best":
            report(Progress(warning))
        unreadable = Unreadable(config.data.unreadable, report, FIX)
        features = FeatureSource(model, config, device, report, unreadable).training(train_data, val_data)
        run = _Run(config, out, best_too, model, (train_data, val_data), features, group, digest, unreadable, report)
        if content is not None:
            run.restore(content)
        else:
            run.start(scale_attention=init is None)
        lines = report if epoch_lines else silent
        told = epoch_lines or page is not None
        facts = list(summary(config, model, train_data, val_data, device, group.world_size)) if told else []
        for line in facts:
            lines(Progress(line))
        run.train(lines, [*callbacks, *trackers(config, out, run.learner.steps)] if group.is_first else [])
        if page is not None and group.is_first:
            run.write_page(page, facts)
    return out / "model.ckpt"


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The rate of an epoch (from 0): constant during warm-up, then the cosine over all epochs."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


class _Run:
    """State of one training run: what a checkpoint saves and restores, and the work of an epoch."""

    def __init__(
        self,
        config: Config,
        out: Path,
        best_too: bool,
        model: PartialLabelModel,
        data: tuple[LabelledImages, LabelledImages],
        features: tuple[FeatureMaps, FeatureMaps],
        group: Processes,
        fingerprint: str,
        unreadable: Unreadable,
        report: Report,
    ):
        """data and features: of the training and the validation split."""
        self.config, self.out, self.model, self.group, self.fingerprint = config, out, model, group, fingerprint
        self.train_data, self.val_data = data
        self.unreadable, self.report = unreadable, report
        self.train_features, self.val_features = features
        self.learner = Learner(model, config, group)
        self.validation = Validation(self.val_data, self.val_features, group, config.train.batch_size, report)
        self.epoch = 0
        self.step = 0  # of the current epoch, done
        self.loss_sum = 0.0  # over the images of these steps
        self.keeper = Keeper(config.train.keep, self.val_data, best_too)
        self.thresholds = np.full(len(model.categories), DEFAULT)  # [C]
        self.history = History(model.categories)
        self.ap: dict[str, float | None] = {}  # of the newest epoch
        self.callbacks = Callbacks([])
        self.lines: Report = silent  # told about the run
        self.pace = Pace(len(self.train_data), len(self.val_data), config.train.epochs, model.words.device)
        self.shuffle = torch.Generator().manual_seed(config.train.seed)
        self.shuffle_state = self.shuffle.get_state()  # at the start of the current epoch
        self.proof_images = self._choose_proof_images()

    def start(self, scale_attention: bool) -> None:
        """What a new run does before its first epoch. scale_attention: not when it starts from trained weights."""
        if scale_attention:
            self._scale_attention()
        self._take_snapshot(self._text_features())
        if not self.group.is_first:
            return
        with replace_file(self.out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(asdict(self.config), sort_keys=False), encoding="utf-8")

    def train(self, report: Report, callbacks: Sequence[Callback] = ()) -> None:
        """All epochs that are still to do, a line for each to `report`."""
        self.callbacks, self.lines, best = Callbacks(callbacks), report, None
        if self.epoch == self.config.train.epochs:
            report(Progress(f"all {self.epoch} epochs are done; a larger train.epochs goes on."))
        try:
            while self.epoch < self.config.train.epochs:
                log = self.run_epoch()
                report(Progress(log.line(self.config.train.epochs)))
                if warning := rising(self.history.losses):
                    report(Progress(warning))
            best = self.out / "model.ckpt"
        finally:
            self.callbacks.on_end(best)

    def run_epoch(self) -> EpochLog:
        started = time.monotonic()
        lr = learning_rate(self.config.train, self.epoch)
        loss = self._train_epoch(lr)
        with self.learner.averaged():
            t = self._text_features()  # [C,E]
            val_mAP = self._validate(t)
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self._take_snapshot(t)
        self.shuffle_state = self.shuffle.get_state()
        log = EpochLog(self.epoch, lr, loss, val_mAP, self._count_unreadable(), time.monotonic() - started)
        self.history.add(log, self.ap)
        self._save(*self.keeper.names(val_mAP))
        if self.group.is_first:
            write_csv(self.out / "log.csv", self.history.epochs)
        self.callbacks.on_epoch(log, self.ap)
        return log

    def restore(self, content: dict[str, Any]) -> None:
        """Take the state of a checkpoint that `resumable` let pass."""
        state = content["resume"]
        load_state(self.model, content, f"{self.out}/last.ckpt")
        self.learner.load_state(state["learner"])
        self.epoch, self.step, self.loss_sum = state["epoch"], state["step"], state["loss_sum"]
        self.keeper.best_mAP = state["best_mAP"]
        self.history.load_state(state)
        self.thresholds = np.array(content["thresholds"])
        self.shuffle_state = state["shuffle"]
        self.shuffle.set_state(self.shuffle_state)
        torch.set_rng_state(state["rng"])

    def write_page(self, path: Path, facts: Sequence[str]) -> None:
        """The report of all epochs. facts: the run's summary."""
        from sdpl.train.report import write_run_report  # its libraries are an extra

        splits = self.train_data, self.val_data
        write_run_report(path, str(self.out), self.config.train, self.history, splits, facts)

    @torch.no_grad()
    def _text_features(self) -> torch.Tensor:
        """t [C,E] of the model as it is, for what only looks at it."""
        return self.learner.text_features()

    def _take_snapshot(self, t: torch.Tensor) -> None:
        """Keep where the model looks in a few validation images, after a few epochs and at the start. t: text features
        [C,E]."""
        if not self.group.is_first or self.epoch not in snapshot_epochs(self.config.train.epochs):
            return
        if self.config.model.decoupling != "none":  # looks everywhere alike
            self.history.snapshots.append(snapshot(self.epoch, self.model, t, self.val_data, self.val_features))

    def _save(self, *names: str) -> None:
        """Write the checkpoint under these names, in this order. It is large, with the frozen towers in it, and is
        written once: `last.ckpt` at the end, so that a stop between two names loses no best."""
        if not self.group.is_first:
            return
        resume = {
            "learner": self.learner.state(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "best_mAP": self.keeper.best_mAP,
            **self.history.state(),
            "data": self.fingerprint,
            "shuffle": self.shuffle_state,
            "rng": torch.get_rng_state(),
        }
        with self.learner.averaged():
            first, *others = (self.out / name for name in names)
            save_checkpoint(first, self.config, self.model, self.proof_images, resume, self.thresholds)
        for other in others:
            share_file(first, other)

    def _scale_attention(self) -> None:
        """Start the attention as sharp as `model.attention_spread` says, on the maps of training images, evenly taken.
        The processes measure the same images and take the mean, so that they stay equal."""
        images = evenly_taken(len(self.train_data), START_IMAGES)
        factor = torch.ones(1, device=self.model.words.device)
        for rows, f in self.train_features.batches([images], 0):
            if rows:
                factor[:] = self.model.attention_factor(f)
        self.group.all_reduce([factor])
        self.model.decoupling.scale_attention(float(factor) / self.group.world_size)
        self.learner.restart_average()

    def _train_epoch(self, lr: float) -> float:
        """The rest of one pass over the training data; returns the mean loss of the whole pass."""
        self.model.train()
        size, every = self.config.train.batch_size, self.config.train.checkpoint_steps
        order = torch.randperm(len(self.train_data), generator=self.shuffle).numpy()
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        shares = [self.group.share(chunk, self.config.train.accumulate) for chunk in chunks]
        todo = range(self.step, len(chunks))
        batches = self.train_features.batches((part for i in todo for part in shares[i]), self.epoch)
        labels = torch.from_numpy(self.train_data.labels)  # [N,C]
        steps = Steps(self.report, f"epoch {self.epoch + 1} training", len(order), min(self.step * size, len(order)))
        self.pace.start_epoch()
        for i in todo:
            parts = (next(batches) for _ in shares[i])
            try:
                loss = self.learner.step(parts, labels, len(chunks[i]), lr)
            except NotFiniteError as error:
                names = listed((self.train_data.images[row].name for row in error.rows), 3)
                raise explain(error, self.epoch + 1, i + 1, names) from None
            self.step, self.loss_sum = i + 1, self.loss_sum + loss * len(chunks[i])
            self.pace.step(len(chunks[i]), loss)
            self.callbacks.on_step(StepLog(self.epoch + 1, i + 1, self.learner.steps, loss, lr, self.pace.images_per_s))
            done = steps.done + len(chunks[i])
            steps.advance(len(chunks[i]), self.pace.note(self.epoch, done))
            if estimate := self.pace.estimate(self.epoch, done):
                self.lines(Progress(estimate))
            if every and self.step % every == 0 and self.step < len(chunks):
                self._save("last.ckpt")
        if self.unreadable.images.issuperset(self.train_data.images):
            raise UserError(f"none of {len(order)} training images could be read; `sdpl-data check` says why.")
        return self.loss_sum / len(order)

    def _validate(self, t: torch.Tensor) -> float:
        """mAP in percent on the known labels of the validation split; fits the thresholds on the way. t: text
        features [C,E]."""
        self.model.eval()
        scores, rows = self.validation.score(self.model, t, f"epoch {self.epoch + 1} validation")  # [n,C], [n]
        labels = self.val_data.labels[rows]  # [n,C]
        if not np.isfinite(scores).all():
            raise UserError(f"the model diverged in epoch {self.epoch + 1} (its scores are NaN): lower train.lr.")
        if self.config.train.fit_thresholds:
            self.thresholds = fit_thresholds(scores, labels)
        aps = 100 * per_category_average_precision(scores, labels)  # [C]
        named = zip(self.model.categories, aps.tolist(), strict=True)
        self.ap = {name: None if math.isnan(ap) else ap for name, ap in named}
        return float(np.nanmean(aps)) if np.isfinite(aps).any() else math.nan

    def _count_unreadable(self) -> int:
        """Images skipped so far in this run, by whichever process, each counted once."""
        paths = (*self.train_data.images, *self.val_data.images)
        skipped = torch.tensor(
            [float(path in self.unreadable.images) for path in paths], device=self.model.words.device
        )
        self.group.all_reduce([skipped])
        return int((skipped > 0).sum())

    def _choose_proof_images(self) -> torch.Tensor:
        """uint8 [N,S,S,3]: the first held-out images, which the export is verified on."""
        size = self.config.model.image_size
        for images, _ in batches(self.val_data, size, PROOF_IMAGES, unreadable=self.unreadable):
            return torch.from_numpy(images)
        raise UserError(f"none of {len(self.val_data)} validation images could be read; `sdpl-data check` says why.")
