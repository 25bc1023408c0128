"""kill -9 at random points of training, export and filling a cache: nothing is lost, and the end is the same bits.

Each run is a forked child, so that a kill falls into the work and not into the seconds of importing.
"""

import hashlib
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdpl.atomic import SUFFIX
from sdpl.bundle import Bundle
from sdpl.export.build import Options, export
from sdpl.targets import parse_targets
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config import read_config
from sdpl.train.contents import PLAIN, hashes
from sdpl.train.loop import train

from .material import Material
from .running import Totals


def kill_training(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Kill and resume one run until it ends by itself; then its weights are those of a run that was never stopped."""
    _kill_runs(totals, random, until, made, made.config)


def kill_filling(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """The same with a feature cache, which is deleted before each run."""
    _kill_runs(totals, random, until, made, made.cached_config)


def kill_export(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Kill exports over a bundle: at its place is always a whole bundle, and the next export cleans up."""
    out = made.folder / "killed" / "model.sdpl"
    options = Options(targets=parse_targets(("cpu:fp32",)))
    export(made.checkpoint, out, options)
    began = time.monotonic()
    _whole(lambda: export(made.checkpoint, out, options))
    seconds = time.monotonic() - began
    while time.monotonic() < until:
        was_killed = _killed(lambda: export(made.checkpoint, out, options), random.uniform(0, 1.1 * seconds))
        totals.cases += was_killed
        problem = _damage(out)
        if problem:
            totals.findings.append({"part": "kill export", "case": totals.cases, "what": problem})
        totals.fine += was_killed and not problem
    export(made.checkpoint, out, options)
    _require_clean(totals, "kill export", out.parent)


def _kill_runs(totals: Totals, random: np.random.Generator, until: float, made: Material, config_path: Path) -> None:
    config, out = read_config(config_path), made.folder / "killed-run"
    cache = None if config.data.cache is None else Path(config.data.cache)
    name = "kill train" if cache is None else "kill cache"
    began = time.monotonic()
    expected = _end(out, cache, lambda: _whole(lambda: train(config, out)))
    seconds = time.monotonic() - began

    def go_on() -> None:
        train(config, out, (out / "last.ckpt").exists())

    while time.monotonic() < until:

        def kill_until_done() -> None:
            while True:
                share = 1.0 if cache is None or (out / "last.ckpt").exists() else 0.5  # filled in the first half
                if time.monotonic() > until or not _killed(go_on, random.uniform(0, share * seconds)):
                    break
                totals.cases += 1
            if not _whole(go_on):
                totals.findings.append({"part": name, "case": totals.cases, "what": "a run could not go on"})

        before = totals.cases
        found = _end(out, cache, kill_until_done)
        if found != expected:
            what = f"other {', '.join(key for key in expected if found.get(key) != expected[key])}"
            totals.findings.append({"part": name, "case": totals.cases, "what": what})
        else:
            totals.fine += totals.cases - before
        _require_clean(totals, name, out)


def _end(out: Path, cache: Path | None, run: Callable[[], object]) -> dict[str, object]:
    """What a run from nothing leaves: hashes of its checkpoints' tensors, and the cache's bytes."""
    shutil.rmtree(out, ignore_errors=True)
    if cache is not None:
        shutil.rmtree(cache, ignore_errors=True)
    run()
    found: dict[str, object] = {}
    for name in ("model.ckpt", "last.ckpt"):
        if (out / name).exists():
            content = hashes(load_checkpoint(out / name))
            found |= {f"{name}: {place}": digest for place, digest in content.items() if place != PLAIN}
    for path in sorted(cache.glob("*")) if cache is not None else ():
        if path.suffix in (".maps", ".sha256", ".partial"):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _damage(out: Path) -> str | None:
    """What is wrong with the bundle at its place; None when it is whole."""
    try:
        bundle = Bundle.open(out)
        for name in bundle.manifest.files:
            bundle.file(name)
    except Exception as error:
        return f"the bundle is not whole: {error}"
    return None


def _require_clean(totals: Totals, part: str, folder: Path) -> None:
    left = [path.name for path in folder.iterdir() if path.name.endswith((SUFFIX, ".old"))]
    if left:
        totals.findings.append({"part": part, "case": totals.cases, "what": f"left over: {left}"})


def _killed(work: Callable[[], object], seconds: float) -> bool:
    """Whether the work was still going on when it was killed."""
    child = _started(work)
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode != 0


def _whole(work: Callable[[], object]) -> bool:
    child = _started(work)
    child.join()
    return child.exitcode == 0


def _started(work: Callable[[], object]) -> multiprocessing.context.ForkProcess:
    torch.set_num_threads(1)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child
