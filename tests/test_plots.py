"""Pictures: what is drawn can be read."""

import itertools

import pytest

from sdpl import plots


def rows(factor):
    """Four batch sizes whose latencies span `factor`."""
    values = [(batch, 1.3 * factor ** (i / 3)) for i, batch in enumerate((1, 2, 4, 8))]
    names = {"side": "sdpl", "boundary": "model", "callers": 1}
    return [{**names, "batch": b, "p50_ms": ms, "images_per_s": 1000 * b / ms, "stable": b != 4} for b, ms in values]


@pytest.mark.parametrize("factor", [1.5, 7, 60, 5000])
def test_latency_ticks_are_enough_and_never_collide(factor, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.draw_latencies({"target": "cpu:fp32", "latencies": rows(factor)}, tmp_path / "a.png")
    (figure,) = figures
    figure.canvas.draw()
    (axes,) = figure.axes
    for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        limits = axes.get_xlim() if side == "x" else axes.get_ylim()
        labels = [t for t in axis.get_ticklabels(which="both") if t.get_text()]
        inside = [t for t in labels if limits[0] <= t.get_position()[side == "y"] <= limits[1]]
        boxes = sorted((t.get_window_extent() for t in inside), key=lambda box: (box.x0, box.y0))
        assert 2 <= len(boxes) <= 9
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in hollow] == [rows(factor)[2]["p50_ms"]]
    plots.pyplot().close(figure)


def test_the_picture_is_written(tmp_path):
    plots.draw_latencies({"target": "cpu:fp32", "latencies": rows(9)}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
