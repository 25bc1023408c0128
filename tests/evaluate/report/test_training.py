"""The page of a training run: whole, bounded, and honest about what is not known."""

import math

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from sdpl.data.images import LabelledImages
from sdpl.evaluate.report.curves import ap_over_epochs, ap_over_positives, loss_and_rate, mean_ap_over_epochs
from sdpl.evaluate.report.training import MOST_ROWS, attention_cards, category_rows, write_training_report
from sdpl.evaluate.training import Attention, Epoch, Training


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def run(categories=3, epochs=4, folder=None, **changes):
    """A run of which epoch 2 is kept; AP of category c in epoch e is 10 e + c, category 0 has none."""
    names = tuple(f"c{c}" for c in range(categories))
    labels = np.tile(np.array([[1], [-1]], np.int8), (1, categories))  # [2,C]
    images = tuple((folder or ".") / f"{i}.jpg" if folder else f"{i}.jpg" for i in range(2))
    data = LabelledImages(images, labels, names)
    return Training(
        **{
            "name": "<b>run</b>",
            "planned": epochs,
            "epochs": [Epoch(e, 0.1 / e, 1 / e, 10.0 * e) for e in range(1, epochs + 1)],
            "ap": [{n: 10.0 * e + c if c else None for c, n in enumerate(names)} for e in range(1, epochs + 1)],
            "kept": 2,
            "reason": "it is the best & only",
            "error": 5.0,
            "took": "3 min",
            "facts": ["data: 2 images"],
            "train": data,
            "val": data,
            "attention": (),
            **changes,
        }
    )


def test_the_curves_are_the_log_s():
    epochs = run().epochs
    loss, rate = loss_and_rate(epochs, kept=2).axes
    assert loss.lines[0].get_xydata().tolist() == [[e.epoch, e.loss] for e in epochs]
    assert rate.lines[0].get_ydata().tolist() == [e.lr for e in epochs]
    (axis,) = mean_ap_over_epochs(epochs, kept=2, error=5.0).axes
    assert axis.lines[0].get_ydata().tolist() == [10, 20, 30, 40]
    assert axis.lines[1].get_xdata()[0] == 2  # the mark of the kept epoch
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (5, 45)


def test_one_epoch_and_no_map_are_drawn():
    alone = [Epoch(1, 0.1, 2.0, math.nan)]
    for figure in (loss_and_rate(alone, 1), mean_ap_over_epochs(alone, 1), ap_over_epochs(alone, [{}], {"a": None})):
        figure.canvas.draw()
    ap_over_positives({"a": None}, {"a": 3}).canvas.draw()


def test_the_best_and_the_worst_are_named_and_long_runs_stay_small():
    names = [f"c{c}" for c in range(900)]
    epochs = [Epoch(e, 0.1, 1.0, 50.0) for e in range(1, 1001)]
    ap = [{name: (c + e / 100) / 10 for c, name in enumerate(names)} for e in range(1000)]
    (axis,) = ap_over_epochs(epochs, ap, ap[-1]).axes
    shown = [text.get_text().split(" ")[0] for text in axis.get_legend().get_texts()]
    assert sorted(shown) == ["c0", "c1", "c2", "c3", "c896", "c897", "c898", "c899"]
    assert sum(len(line.get_xdata()) for line in axis.lines) < 16_000


def test_rows_have_the_kept_the_last_and_the_best_ap():
    ap = [{"c0": None, "c1": v} for v in (10.0, 30.0, 20.0)]
    rows = category_rows(run(2, 3, ap=ap))
    assert (rows[0].kept, rows[0].best, rows[0].best_epoch, rows[0].last) == (None, None, None, None)
    assert (rows[1].kept, rows[1].best, rows[1].best_epoch, rows[1].last) == (30, 30, 2, 20)
    assert (rows[1].train.positive, rows[1].val.negative) == (1, 1)
    earlier = category_rows(run(2, 3, ap=[{}, *ap[1:]]))  # the AP of the first epoch was not kept
    assert (earlier[1].best, earlier[1].best_epoch) == (30, 2)


def test_attention_is_shown_in_the_order_of_the_epochs(tmp_path):
    for i in range(2):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{i}.jpg")
    peaked = np.zeros((2, 2, 2), np.float32)
    peaked[:, 0, 0] = 1
    steps = [Attention(0, ((0, 1), (1, 0)), np.full((2, 2, 2), 0.25)), Attention(3, ((0, 1), (1, 0)), peaked)]
    first, second = attention_cards(run(folder=tmp_path, attention=steps))
    ((category, pictures),) = first.rows
    assert (category, second.rows[0][0]) == ("c1", "c0")
    assert [(epoch, peak) for epoch, _, peak in pictures] == [(0, 1.0), (3, 4.0)]
    (tmp_path / "0.jpg").unlink()
    assert [card.name for card in attention_cards(run(folder=tmp_path, attention=steps))] == ["1.jpg"]


def test_the_page_escapes_names_and_thousands_of_categories_stay_small(tmp_path):
    write_training_report(tmp_path / "r.html", run(MOST_ROWS + 1000, 60))
    text = (tmp_path / "r.html").read_text()
    assert len(text) < 2_000_000
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert "it is the best &amp; only" in text
    assert text.count('<th scope="row">') == MOST_ROWS
    assert f"Shown are the {MOST_ROWS} with the fewest training positives" in text
