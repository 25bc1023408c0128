import base64

import numpy as np
import pytest
from matplotlib import pyplot

from sdpl.data.images import LabelledImages
from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.metrics import per_category_average_precision
from sdpl.evaluate.report.figures import FAINT, MOST_BARS, NAMED, POINTS, ap_bars, calibration_curve, precision_recall


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def labelled(n=400, categories=3, seed=0):
    """Scores that know a little about the labels, a fifth of which are unknown."""
    rng = np.random.RandomState(seed)
    labels = rng.choice([-1, 0, 1], (n, categories), p=(0.5, 0.2, 0.3)).astype(np.int8)
    scores = np.clip(rng.normal(0.4 + 0.1 * labels, 0.15), 0, 1)
    return scores, LabelledImages((), labels, tuple(f"c{i}" for i in range(categories)))


def test_curves_are_those_whose_area_is_the_ap():
    scores, data = labelled()
    aps = per_category_average_precision(scores, data.labels)
    figure = precision_recall(scores, data, dict(zip(data.categories, 100 * aps, strict=True)))
    lines = {line.get_label().split(" ")[0]: line.get_xydata() for line in figure.axes[0].lines}
    for name, ap in zip(data.categories, aps, strict=True):
        recall, precision = lines[name].T
        assert len(recall) <= POINTS
        assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(ap, abs=1e-6)
    assert "all" in lines


def test_long_curves_are_thinned_and_stay_where_they_were():
    scores, data = labelled(n=20_000, categories=1)
    ap = per_category_average_precision(scores, data.labels)[0]
    recall, precision = precision_recall(scores, data, {"c0": 100 * ap}).axes[0].lines[1].get_xydata().T
    assert len(recall) <= POINTS
    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(ap, abs=5e-3)


def test_many_categories_stay_a_small_figure():
    scores, data = labelled(n=60, categories=900)
    aps = dict(zip(data.categories, 100 * per_category_average_precision(scores, data.labels), strict=True))
    lines = precision_recall(scores, data, aps).axes[0].lines
    assert len(lines) <= 2 * FAINT[0] + 2 * NAMED + 1
    assert sum(len(line.get_xdata()) for line in lines) < 2 * FAINT[0] * FAINT[1] + 3000


def test_bars_are_sorted_bounded_and_leave_out_what_has_no_ap():
    figure = ap_bars({"a": {"x": 10.0, "none": None, "y": 90.0}}, {"x": 5.0, "y": 6.0, "none": 1.0})
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["y", "x"]
    assert [bar.get_width() for bar in axis.patches] == [90, 10]
    many = ap_bars({"a": {f"c{i}": i / 10 for i in range(1000)}})
    assert sum(len(axis.patches) for axis in many.axes) == MOST_BARS
    assert many.axes[0].get_yticklabels()[0].get_text() == "c999"


def test_two_models_stand_side_by_side_in_the_first_one_s_order():
    figure = ap_bars({"a": {"x": 10.0, "y": 90.0}, "b": {"x": 95.0, "y": 20.0}})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [90, 10, 20, 95]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_calibration_shows_the_filled_bins():
    scores, data = labelled()
    result = calibration(scores, data.labels)
    curve, counts = calibration_curve(result).axes
    shown = curve.lines[1].get_xydata()
    assert len(shown) == (result.count > 0).sum()
    assert np.isfinite(shown).all()
    assert [bar.get_height() for bar in counts.patches] == result.count.tolist()


def test_the_page_s_figures_have_no_unparsed_mathematics(tmp_path):
    from sdpl.evaluate.report.page import figure

    labels = np.where(np.arange(60)[:, None] % 3 == 0, 1, -1).astype(np.int8)
    scores = np.linspace(0, 1, 60)[:, None] ** 2
    drawn = figure(lambda: calibration_curve(calibration(scores, labels)), "calibration")
    assert "mathdefault" not in base64.b64decode(drawn.light.split(",")[1]).decode()
