from dataclasses import dataclass

import numpy as np
import pytest

from sdpl.train.sweep_report import cells, draw_curves, grid, markdown, paired


@dataclass(frozen=True)
class Row:
    method: str
    proportion: float
    seed: int
    mAP: float  # noqa: N815
    OF1: float = 50.0
    CF1: float = 40.0


ROWS = [Row("a", 0.9, 0, 90), Row("a", 0.1, 0, 10), Row("a", 0.1, 1, 30), Row("a", 0.9, 1, 94), Row("b", 0.1, 0, 7)]


def test_grid_has_rising_proportions_and_seeds():
    np.testing.assert_array_equal(grid(ROWS, "a", "mAP"), [[10, 30], [90, 94]])


def test_averages_are_taken_for_each_seed_first():
    head, rows = cells(ROWS[:4])
    assert head == ["method", "mAP 10%", "mAP 90%", "average mAP", "average OF1", "average CF1"]
    deviation = np.std([50, 62], ddof=1)
    assert rows == [["a", "20.00 ± 14.14", "92.00 ± 2.83", f"56.00 ± {deviation:.2f}", "50.00 ± 0.00", "40.00 ± 0.00"]]


def test_one_seed_has_no_deviation(tmp_path):
    assert cells(ROWS[:2])[1] == [["a", "10.00", "90.00", "50.00", "50.00", "40.00"]]
    draw_curves(ROWS[:2], ["a"], tmp_path / "one.png")  # a warning would be an error
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_paired_differences_take_out_what_the_seeds_share():
    """Seeds that are far apart, and a method that gains 2, 3 and 4 points on each: t(0.975, 2) = 4.303."""
    rows = [Row("a", p, seed, 10 * seed) for p in (0.1, 0.9) for seed in range(3)]
    rows += [Row("b", p, seed, 10 * seed + 2 + seed) for p in (0.1, 0.9) for seed in range(3)]
    rows += [Row("b", 0.5, 0, 99), Row("b", 0.1, 7, 99)]  # without a partner: they count nowhere
    mean, half, seeds = paired(rows, "b", "a")
    assert (mean, seeds) == (3, 3)
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert np.isnan(paired(rows[:1] + rows[6:7], "b", "a")[1])


def test_markdown_has_a_row_for_each_method():
    text = markdown(ROWS[:4])
    assert text.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_curves_are_a_small_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw_curves(ROWS, ["a", "b"], tmp_path / "c.png")
    assert 1000 < (tmp_path / "c.png").stat().st_size < 200_000
