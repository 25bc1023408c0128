"""kill -9 at random points of sweeps and of scoring: what was finished is kept, and the end is the same bits."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pyarrow import parquet

from sdpl.scale.job import Settings
from sdpl.scale.score import score
from sdpl.scale.worker import Options
from sdpl.train.config import Split, SweepConfig
from sdpl.train.sweep import RESULT, run_sweep

from .children import anywhere, found, kill_until_done, timed
from .kills import require_clean, tensors, warm_training
from .material import Material
from .running import Totals, going_on


def kill_sweep(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """A sweep of two runs, killed and started again until it ends by itself: the same results and weights as one that
    was never stopped; a finished run is not repeated."""
    out = made.folder / "killed-sweep"
    warm_training(made.config, made.folder / "killed-run")
    test = Split(annotations=str(made.annotations))
    sweep = SweepConfig(
        base=str(made.config), test=test, methods={"one": {}}, proportions=(0.5,), seeds=(0, 1), keep_checkpoints=True
    )

    def run() -> None:
        run_sweep(sweep, out)

    def results() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in out.rglob(RESULT)}

    def end() -> dict[str, object]:
        folders = sorted(path.parent for path in out.rglob(RESULT))
        return {folder.name: tensors(*folder.glob("*.ckpt")) for folder in folders} | dict(results())

    shutil.rmtree(out, ignore_errors=True)
    seconds, _ = timed(run)
    expected = end()
    while going_on(totals, until):
        before, kept = totals.cases, _Kept(results)
        shutil.rmtree(out, ignore_errors=True)
        kill_until_done(totals, "kill sweep", run, lambda: anywhere(random, 0.7 * seconds), until, kept.look)
        if end() != expected:
            found(totals, "kill sweep", "other results or weights")
        else:
            totals.fine += totals.cases - before
        for folder in (out, *(path.parent for path in out.rglob(RESULT))):
            require_clean(totals, "kill sweep", folder)


def kill_score(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Scoring of six shards, killed and started again until it ends by itself: each image once, the same scores; a
    finished shard is not written again."""
    out = made.folder / "killed-scores"
    options = Options(str(made.bundle), str(out), threads=1, settings=Settings(shard_size=4))
    inputs = [str(made.folder / "train")]
    _warm_scoring(made.bundle, inputs[0], made.folder / "scores")

    def run() -> None:
        score(options, inputs)

    def shards() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.glob("shard-*.parquet")}

    def rows() -> list[dict[str, object]]:
        tables = [parquet.read_table(path) for path in sorted(out.glob("shard-*.parquet"))]
        return [row for table in tables for row in table.to_pylist()]

    shutil.rmtree(out, ignore_errors=True)
    seconds, _ = timed(run)
    expected = rows()
    while going_on(totals, until):
        before, kept = totals.cases, _Kept(shards)
        shutil.rmtree(out, ignore_errors=True)
        kill_until_done(totals, "kill score", run, lambda: anywhere(random, seconds), until, kept.look)
        left = sorted(path.name for path in out.iterdir() if path.name.startswith((".shard-", ".job.", ".inputs.")))
        if rows() != expected:
            found(totals, "kill score", "other rows")
        elif left:
            found(totals, "kill score", f"left over: {left}")
        else:
            totals.fine += totals.cases - before


class _Kept:
    """Holds that files which were there after one kill are there, the same, after the next."""

    def __init__(self, files: Callable[[], dict[str, bytes]]):
        self._files, self._before = files, dict[str, bytes]()

    def look(self) -> str | None:
        now = self._files()
        lost = [name for name, content in self._before.items() if now.get(name) != content]
        self._before = now
        return f"finished and changed: {lost}" if lost else None


@functools.cache
def _warm_scoring(bundle: Path, images: str, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    score(Options(str(bundle), str(out), threads=1), [images])
