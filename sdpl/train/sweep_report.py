"""What came out of a sweep: one table, and curves over the proportion of known labels. Needs no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.stats import t as student_t

from sdpl.files import replace_file, write_json
from sdpl.text import escaped

METRICS = ("mAP", "OF1", "CF1")


@dataclass(frozen=True)
class Result:
    """What one run reached on the test split, in percent: the checkpoint that `train.keep` names, and both of those
    it chooses from."""

    method: str
    proportion: float
    seed: int
    mAP: float  # noqa: N815, the field writes it so
    OF1: float
    CF1: float
    mAP_voc2012: float  # noqa: N815
    mAP_best: float  # noqa: N815, of the epoch with the best validation mAP
    mAP_last: float  # noqa: N815, of the last epoch


def grid(results: Sequence[Result], method: str, metric: str) -> np.ndarray:
    """Percent [P,R] of one method: proportions in rising order, seeds."""
    own = [r for r in results if r.method == method]
    proportions, seeds = sorted({r.proportion for r in own}), sorted({r.seed for r in own})
    value = {(r.proportion, r.seed): getattr(r, metric) for r in own}
    return np.array([[value[p, s] for s in seeds] for p in proportions])


def paired(results: Sequence[Result], method: str, other: str, metric: str = "mAP") -> tuple[float, float, int]:
    """How much more `method` has than `other`, in points: mean and half width of its 95 % confidence interval, over n
    seeds, and n. Differences are taken at equal proportion and seed, then averaged over the proportions that both have
    for each seed; Student's t over the seeds. The half width is NaN for a single seed."""
    value = {(r.method, r.proportion, r.seed): getattr(r, metric) for r in results}
    by_seed: dict[int, list[float]] = {}
    for name, proportion, seed in value:
        if name == method and (other, proportion, seed) in value:
            difference = value[method, proportion, seed] - value[other, proportion, seed]
            by_seed.setdefault(seed, []).append(difference)
    means = np.array([np.mean(differences) for differences in by_seed.values()])
    n = len(means)
    half = float(student_t.ppf(0.975, n - 1) * means.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return float(means.mean()), half, n


def spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over the seeds [R]; NaN for a single seed, of which there is none."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The table's head and rows: mAP at each proportion, then mAP, OF1 and CF1 averaged over the proportions.

    "mean +- standard deviation" over the seeds, of one seed its value; the averages are taken for each seed first.
    """
    proportions = sorted({r.proportion for r in results})
    head = ["method", *(f"mAP {p:.0%}" for p in proportions), *(f"average {metric}" for metric in METRICS)]
    rows = []
    for method in dict.fromkeys(r.method for r in results):
        columns = [spread(values) for values in grid(results, method, "mAP")]
        columns += [spread(grid(results, method, metric).mean(axis=0)) for metric in METRICS]
        rows.append([method, *(f"{mean:.2f}" + ("" if isnan(dev) else f" ± {dev:.2f}") for mean, dev in columns)])
    return head, rows


def table(results: Sequence[Result], title: str) -> Table:
    """As `cells`, for the terminal."""
    head, rows = cells(results)
    result = Table(title=escaped(title))
    for i, name in enumerate(head):
        result.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        result.add_row(*map(escaped, row))
    return result


def markdown(results: Sequence[Result]) -> str:
    """As `cells`, for a document."""
    head, rows = cells(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_results(results: Sequence[Result], figures: dict[str, tuple[str, ...]], out: Path) -> None:
    """Write `results.json`, `table.md` and the figures' curves as PNG into the folder of a sweep.

    figures: name of a picture -> the methods in it; without any, "curves" shows all.
    """
    write_json(out / "results.json", [asdict(result) for result in results])
    with replace_file(out / "table.md") as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    everything = tuple(dict.fromkeys(result.method for result in results))
    for name, methods in (figures or {"curves": everything}).items():
        draw_curves(results, methods, out / f"{name}.png")


def draw_curves(results: Sequence[Result], methods: Sequence[str], path: Path, metric: str = "mAP") -> None:
    """A curve for each method over the known proportion, a band of one standard deviation over the seeds, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for method in methods:
        proportions = sorted({r.proportion for r in results if r.method == method})
        mean, deviation = np.array([spread(values) for values in grid(results, method, metric)]).T  # [P], [P]
        x = 100 * np.array(proportions)
        (line,) = axes.plot(x, mean, marker="o", markersize=4, label=method)
        low, high = np.clip([mean - deviation, mean + deviation], 0, 100)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("known labels (%)")
    axes.set_ylabel(f"{metric} (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")
