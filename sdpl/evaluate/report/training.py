"""The page of a training run: its curves, what was kept and why, AP and known labels by category, attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.data.images import LabelCounts, count_labels
from sdpl.errors import UserError
from sdpl.evaluate.report.cases import data_uri, small_photo
from sdpl.evaluate.report.curves import ap_over_epochs, ap_over_positives, loss_and_rate, mean_ap_over_epochs
from sdpl.evaluate.report.page import figure, write_page
from sdpl.evaluate.training import Training
from sdpl.plots import overlay

SIDE = 150  # pixels of the longer side of a picture
MOST_ROWS = 2000  # of the table of categories, within the page's size
MOST_STEPS = 6  # of the attention's development that are shown


@dataclass(frozen=True)
class CategoryRow:
    """A category's known labels in both splits, and its AP in percent: of the kept epoch, the best and the last."""

    train: LabelCounts
    val: LabelCounts
    kept: float | None
    best: float | None
    best_epoch: int | None
    last: float | None


@dataclass(frozen=True)
class AttentionCard:
    """An image with the development of its attention; the pictures are data URIs."""

    name: str
    photo: str
    rows: tuple[tuple[str, tuple[tuple[int, str, float], ...]], ...]  # category; epoch, picture, peak / mean of each


def write_training_report(path: Path, run: Training) -> None:
    """Write the page of a run, atomically. Raises UserError when the file cannot be written."""
    rows = category_rows(run)
    kept = {row.train.category: row.kept for row in rows}
    positives = {row.train.category: row.train.positive for row in rows}
    random = [100 * row.val.positive / row.val.known for row in rows if row.val.positive]
    figures = {
        "loss": figure(lambda: loss_and_rate(run.epochs, run.kept), "training loss and learning rate over the epochs"),
        "mAP": figure(lambda: mean_ap_over_epochs(run.epochs, run.kept, run.error), "validation mAP over the epochs"),
        "ap": figure(lambda: ap_over_epochs(run.epochs, run.ap, kept), "AP of each category over the epochs"),
        "positives": figure(lambda: ap_over_positives(kept, positives), "AP over known training positives"),
    }
    write_page(
        path,
        "training.html",
        run=run,
        rows=sorted(rows, key=lambda row: row.train.positive)[:MOST_ROWS] if len(rows) > MOST_ROWS else rows,
        categories=len(rows),
        figures=figures,
        random=float(np.mean(random)) if random else None,
        kept=next(epoch for epoch in run.epochs if epoch.epoch == run.kept),
        last=run.epochs[-1],
        cards=attention_cards(run),
    )


def category_rows(run: Training) -> list[CategoryRow]:
    """Each category's row of the table, in the order of the categories."""
    rows = []
    for train, val in zip(count_labels(run.train), count_labels(run.val), strict=True):
        values = [ap.get(train.category) for ap in run.ap]
        known = [(value, -i) for i, value in enumerate(values) if value is not None]
        best, at = max(known) if known else (None, 0)  # the earliest of equal ones
        epoch = None if best is None else run.epochs[-at].epoch
        rows.append(CategoryRow(train, val, values[run.kept - 1], best, epoch, values[-1]))
    return rows


def attention_cards(run: Training) -> list[AttentionCard]:
    """A card for each image whose attention was kept and that can still be read."""
    spread = np.unique(np.linspace(0, len(run.attention) - 1, min(MOST_STEPS, len(run.attention))).round().astype(int))
    steps = [run.attention[i] for i in spread]
    cases = sorted({case for step in steps for case in step.cases})
    cards = []
    for row in sorted({row for row, _ in cases}):
        try:
            photo = small_photo(run.val.images[row], SIDE)
        except UserError:  # it could be read when the run began
            continue
        found = []
        for case in (case for case in cases if case[0] == row):
            maps = [(step.epoch, step.maps[step.cases.index(case)]) for step in steps if case in step.cases]
            pictures = tuple((n, data_uri(overlay(photo, a)), float(a.max() / a.mean())) for n, a in maps)
            found.append((run.val.categories[case[1]], pictures))
        cards.append(AttentionCard(run.val.images[row].name, data_uri(photo), tuple(found)))
    return cards
