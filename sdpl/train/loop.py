"""The training loop: warm-up and cosine, one CSV row per epoch, best and last checkpoint, exact resuming."""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sdpl.errors import UserError, listed
from sdpl.files import replace_file
from sdpl.train.checkpoint import load_checkpoint, save_checkpoint
from sdpl.train.config import Config, Split, TrainConfig, check_config, differences
from sdpl.train.data import LabelledImages, Unreadable, batches, require_known_labels
from sdpl.train.formats import read_labels
from sdpl.train.log import EpochLog, Events, write_csv
from sdpl.train.maps import Maps, MapSource, require_precision
from sdpl.train.metrics import mean_average_precision
from sdpl.train.model import PartialLabelModel, new_model
from sdpl.train.parallel import Processes, choose_device, processes
from sdpl.train.partial import mask_labels
from sdpl.train.step import Learner, NotFiniteError, explain
from sdpl.train.thresholds import DEFAULT, fit_thresholds

PROOF_IMAGES = 8
CHECKPOINTS = ("model.ckpt", "last.ckpt")
MEND = "Mend or remove it and add --resume; or, with data.unreadable: skip, such images are left out and counted."


def train(
    config: Config, out: Path, resume: bool = False, console: Console | None = None, say_epochs: bool = True
) -> Path:
    """Train as configured into the folder `out`; returns the best checkpoint, `out/model.ckpt`.

    `last.ckpt` holds the newest epoch (or step, with `checkpoint_steps`); `resume` goes on from it and ends with the
    same weights as a run that was never stopped. Started by torchrun, the processes share every batch and every
    validation; the first one writes. Raises UserError for anything wrong with the configuration or the data.
    """
    device = choose_device(config.train.device)
    require_precision(config.train.precision, device)
    with processes(device) as group:
        console = console or Console(stderr=True, quiet=not group.is_first)
        torch.manual_seed(config.train.seed)
        train_data, val_data = load_data(config)
        require_known_labels(train_data)
        fingerprint = _fingerprint(train_data, val_data)
        content = _resumable(config, out, fingerprint) if resume else None
        if not resume and any((out / name).exists() for name in CHECKPOINTS):
            raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out.")
        group.wait()  # until every process has seen what there is
        model = new_model(config.model, train_data.categories).to(device)
        if not (val_data.labels > 0).any():
            console.print("no validation image has a known positive: without a mAP, the newest epoch is kept.")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=not say_epochs) as progress:
            say = partial(console.print, markup=False, soft_wrap=True)
            unreadable = Unreadable(config.data.unreadable, say, MEND)
            maps = MapSource(model, config, device, progress, unreadable).training(train_data, val_data)
            run = _Run(config, out, model, (train_data, val_data), maps, group, fingerprint, unreadable)
            if content is not None:
                run.restore(content)
            elif group.is_first:
                run.start_files()
            run.train(progress, say_epochs)
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
        model: PartialLabelModel,
        data: tuple[LabelledImages, LabelledImages],
        maps: tuple[Maps, Maps],
        group: Processes,
        fingerprint: str,
        unreadable: Unreadable,
    ):
        """data and maps: of the training and the validation split."""
        self.config, self.out, self.model, self.group, self.fingerprint = config, out, model, group, fingerprint
        self.train_data, self.val_data = data
        self.unreadable = unreadable
        self.train_maps, self.val_maps = maps
        self.learner = Learner(model, config, group)
        self.epoch = 0
        self.step = 0  # of the current epoch, done
        self.loss_sum = 0.0  # over the images of these steps
        self.best_map = -math.inf
        self.thresholds = np.full(len(model.categories), DEFAULT)  # [C]
        self.history: list[dict] = []
        self.shuffle = torch.Generator().manual_seed(config.train.seed)
        self.shuffle_state = self.shuffle.get_state()  # at the start of the current epoch
        self.proof_images = self._choose_proof_images()

    def start_files(self) -> None:
        with replace_file(self.out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(asdict(self.config), sort_keys=False))

    def train(self, progress: Progress, say_epochs: bool) -> None:
        """All epochs that are still to do."""
        self.events = Events(self.out, self.config.train.tensorboard and self.group.is_first, self.learner.steps)
        while self.epoch < self.config.train.epochs:
            log = self.run_epoch(progress)
            if say_epochs:
                progress.console.print(
                    f"epoch {log.epoch:3d}/{self.config.train.epochs}  lr {log.lr:.5f}  loss {log.train_loss:8.4f}"
                    f"  val mAP {log.val_map:5.1f}  {log.seconds:5.1f} s"
                    + (f"  {log.unreadable} unreadable images skipped" if log.unreadable else "")
                )
        self.events.close()

    def run_epoch(self, progress: Progress) -> EpochLog:
        started = time.monotonic()
        lr = learning_rate(self.config.train, self.epoch)
        loss = self._train_epoch(lr, progress)
        with self.learner.averaged():
            val_map = self._validate(progress)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        self.shuffle_state = self.shuffle.get_state()
        log = EpochLog(self.epoch, lr, loss, val_map, self._count_unreadable(), time.monotonic() - started)
        self.history.append(asdict(log))
        is_best = not val_map <= self.best_map  # without any validation mAP (nan) the newest is taken
        if is_best and math.isfinite(val_map):
            self.best_map = val_map
        for name in ("model.ckpt", "last.ckpt") if is_best else ("last.ckpt",):  # a stop between them loses no best
            self._save(name)
        if self.group.is_first:
            write_csv(self.out / "log.csv", self.history)
        self.events.write(self.learner.steps, {"epoch/loss": loss, "epoch/val mAP": val_map, "epoch/lr": lr})
        return log

    def restore(self, content: dict) -> None:
        """Take the state of a checkpoint that `_resumable` let pass."""
        state = content["resume"]
        self.model.load_state_dict(content["state"])
        self.learner.load_state(state["learner"])
        for name in ("epoch", "step", "loss_sum", "best_map", "history"):
            setattr(self, name, state[name])
        self.thresholds = np.array(content["thresholds"])
        self.shuffle_state = state["shuffle"]
        self.shuffle.set_state(self.shuffle_state)
        torch.set_rng_state(state["rng"])

    def _save(self, name: str) -> None:
        if not self.group.is_first:
            return
        resume = {
            "learner": self.learner.state(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "best_map": self.best_map,
            "history": self.history,
            "data": self.fingerprint,
            "shuffle": self.shuffle_state,
            "rng": torch.get_rng_state(),
        }
        with self.learner.averaged():
            save_checkpoint(self.out / name, self.config, self.model, self.proof_images, resume, self.thresholds)

    def _train_epoch(self, lr: float, progress: Progress) -> float:
        """The rest of one pass over the training data; returns the mean loss of the whole pass."""
        self.model.train()
        size, every = self.config.train.batch_size, self.config.train.checkpoint_steps
        order = torch.randperm(len(self.train_data), generator=self.shuffle).numpy()
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        shares = [self.group.share(chunk, self.config.train.accumulate) for chunk in chunks]
        todo = range(self.step, len(chunks))
        batches = self.train_maps.batches((part for i in todo for part in shares[i]), self.epoch)
        labels = torch.from_numpy(self.train_data.labels)  # [N,C]
        task = progress.add_task(f"epoch {self.epoch + 1} training", total=len(order), completed=self.step * size)
        for i in todo:
            parts = (next(batches) for _ in shares[i])
            try:
                loss = self.learner.step(parts, labels, len(chunks[i]), lr)
            except NotFiniteError as error:
                names = listed((self.train_data.images[row].name for row in error.rows), 3)
                raise explain(error, self.epoch + 1, i + 1, names) from None
            self.step, self.loss_sum = i + 1, self.loss_sum + loss * len(chunks[i])
            self.events.write(self.learner.steps, {"step/loss": loss})
            progress.advance(task, len(chunks[i]))
            if every and self.step % every == 0 and self.step < len(chunks):
                self._save("last.ckpt")
        progress.remove_task(task)
        if self.unreadable.images.issuperset(self.train_data.images):
            raise UserError(f"none of {len(order)} training images could be read; `sdpl-data check` says why.")
        return self.loss_sum / len(order)

    def _validate(self, progress: Progress) -> float:
        """mAP in percent on the known labels of the validation split; fits the thresholds on the way."""
        self.model.eval()
        scores, rows = self._score_validation(progress)  # [n,C], [n]
        labels = self.val_data.labels[rows]  # [n,C]
        if not np.isfinite(scores).all():
            raise UserError(
                f"the model diverged in epoch {self.epoch + 1} (its scores are not numbers): lower train.lr."
            )
        if self.config.train.fit_thresholds:
            self.thresholds = fit_thresholds(scores, labels)
        return 100 * mean_average_precision(scores, labels)

    @torch.no_grad()
    def _score_validation(self, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n,C] of the images that could be read, and their rows [n] in the split.

        Each process scores its share of the images, then all have all.
        """
        t = self.learner.text_features()  # [C,E]
        scores = torch.zeros(self.val_data.labels.shape, device=t.device)  # [N,C]
        times = torch.zeros(len(scores), device=t.device)  # [N], that each image was scored: 1, or 0 if unreadable
        task = progress.add_task(f"epoch {self.epoch + 1} validation", total=len(self.val_data))
        for rows, f in self.val_maps.batches(self._validation_groups()):
            if rows:
                scores[rows] = self.model.probabilities(self.model.pool(f, t)[0])
                times[rows] += 1
            progress.advance(task, len(rows) * self.group.count)
        progress.remove_task(task)
        self.group.add_up([scores, times])
        found = np.flatnonzero(times.cpu().numpy() == 1)  # [n]
        if not len(found):
            raise UserError(f"none of {len(scores)} validation images could be read; `sdpl-data check` says why.")
        return scores.cpu().numpy()[found], found

    def _count_unreadable(self) -> int:
        """Images skipped so far in this run, by whichever process, each counted once."""
        paths = (*self.train_data.images, *self.val_data.images)
        skipped = torch.tensor(
            [float(path in self.unreadable.images) for path in paths], device=self.model.words.device
        )
        self.group.add_up([skipped])
        return int((skipped > 0).sum())

    def _validation_groups(self) -> Iterator[np.ndarray]:
        own = np.arange(self.group.rank, len(self.val_data), self.group.count)
        size = max(1, self.config.train.batch_size // self.group.count)
        return (own[start : start + size] for start in range(0, len(own), size))

    def _choose_proof_images(self) -> torch.Tensor:
        """uint8 [N,S,S,3]: the first held-out images, which the export is verified on."""
        size = self.config.model.image_size
        for images, _ in batches(self.val_data, size, PROOF_IMAGES, unreadable=self.unreadable):
            return torch.from_numpy(images)
        raise UserError(f"none of {len(self.val_data)} validation images could be read; `sdpl-data check` says why.")


def _resumable(config: Config, out: Path, fingerprint: str) -> dict:
    """The content of `last.ckpt`. Raises UserError listing every difference when it is not of this run."""
    content = load_checkpoint(out / "last.ckpt")
    state = content["resume"]
    changed = differences(asdict(check_config(content["config"], "last.ckpt")), asdict(config))
    if state["data"] != fingerprint:
        changed.append("data: other images, labels or categories than then")
    if state["history"] and not (out / "model.ckpt").exists():
        raise UserError(f"{out}/model.ckpt, the best checkpoint, is missing: put it back or train anew.")
    if changed:
        raise UserError(f"{out}/last.ckpt was trained with another configuration: {'; '.join(changed)}.")
    return content


def _fingerprint(*splits: LabelledImages) -> str:
    """SHA-256 of what is trained and validated on: categories, image names and labels, in order."""
    digest = hashlib.sha256(repr(splits[0].categories).encode())
    for data in splits:
        digest.update(repr([path.name for path in data.images]).encode() + data.labels.tobytes())
    return digest.hexdigest()
