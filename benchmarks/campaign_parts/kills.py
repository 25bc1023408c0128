"""kill -9 at random points of training, export and filling a cache: nothing is lost, and the end is the same bits.

Each run is a forked child of a process in which the same work was done once, so that a kill falls into the work and
not into the seconds of importing. The work is the library's own, on real files.
"""

import functools
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdpl.atomic import SUFFIX
from sdpl.bundle import Bundle
from sdpl.export.build import Options, export
from sdpl.targets import parse_targets
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config_files import read_config
from sdpl.train.contents import PLAIN, hashes
from sdpl.train.loop import train

from .children import anywhere, found, kill_until_done, killed, timed, whole
from .material import Material
from .running import Totals, going_on

CREATED = re.compile(rb"created\x12\x19[0-9T:+-]{25}")  # in a graph's metadata: the one part that differs


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
    warm_export(made.checkpoint, out)
    expected = _files(out)
    seconds, _ = timed(lambda: export(made.checkpoint, out, options))
    while going_on(totals, until):
        was_killed = killed(lambda: export(made.checkpoint, out, options), anywhere(random, seconds, late=0.5))
        totals.cases += was_killed
        problem = _damage(out, expected)
        if problem:
            found(totals, "kill export", problem)
        totals.fine += was_killed and not problem
    if not whole(lambda: export(made.checkpoint, out, options)):
        found(totals, "kill export", "the next export failed")
    require_clean(totals, "kill export", out.parent)


@functools.cache
def warm_export(checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    export(checkpoint, out, Options(targets=parse_targets(("cpu:fp32",))))


@functools.cache
def warm_training(config: Path, out: Path) -> None:
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    train(read_config(config), out)


def _kill_runs(totals: Totals, random: np.random.Generator, until: float, made: Material, config_path: Path) -> None:
    config, out = read_config(config_path), made.folder / "killed-run"
    cache = None if config.data.cache is None else Path(config.data.cache)
    name = "kill train" if cache is None else "kill cache"
    warm_training(made.config, out)
    expected, seconds = None, 0.0

    def go_on() -> None:
        train(config, out, (out / "last.ckpt").exists())

    def once() -> None:
        nonlocal seconds
        seconds, _ = timed(go_on)

    def draw() -> float:
        filled = cache is None or (out / "last.ckpt").exists()  # a cache is filled in the first half
        return anywhere(random, seconds if filled else 0.5 * seconds)

    expected = _end(out, cache, once)
    while going_on(totals, until):
        before = totals.cases
        end = _end(out, cache, lambda: kill_until_done(totals, name, go_on, draw, until))
        if end != expected:
            found(totals, name, f"other {', '.join(key for key in expected if end.get(key) != expected[key])}")
        else:
            totals.fine += totals.cases - before
        require_clean(totals, name, out)


def _end(out: Path, cache: Path | None, run: Callable[[], object]) -> dict[str, str]:
    """What a run from nothing leaves: hashes of its checkpoints' tensors, and the cache's bytes."""
    shutil.rmtree(out, ignore_errors=True)
    if cache is not None:
        shutil.rmtree(cache, ignore_errors=True)
    run()
    end = tensors(out / "model.ckpt", out / "last.ckpt")
    for path in sorted(cache.glob("*")) if cache is not None else ():
        if path.suffix in (".maps", ".sha256", ".partial"):
            end[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return end


def tensors(*checkpoints: Path) -> dict[str, str]:
    """The hashes of all tensors in these files, of those that are there."""
    end: dict[str, str] = {}
    for path in checkpoints:
        if path.exists():
            content = hashes(load_checkpoint(path))
            end |= {f"{path.name}: {place}": digest for place, digest in content.items() if place != PLAIN}
    return end


def _files(out: Path) -> dict[str, str]:
    """The hashes of a bundle's files, without the time at which its graph was made."""
    contents = {name: (out / name).read_bytes() for name in Bundle.open(out).manifest.files}
    return {name: hashlib.sha256(CREATED.sub(b"", content)).hexdigest() for name, content in contents.items()}


def _damage(out: Path, expected: dict[str, str]) -> str | None:
    """What is wrong with the bundle at its place; None when it is whole, with the same files as always."""
    try:
        bundle = Bundle.open(out)
        for name in bundle.manifest.files:
            bundle.file(name)
    except Exception as error:
        return f"the bundle is not whole: {error}"
    return None if _files(out) == expected else "the bundle has other files"


def require_clean(totals: Totals, part: str, folder: Path) -> None:
    left = [path.name for path in folder.iterdir() if path.name.endswith((SUFFIX, ".old"))]
    if left:
        found(totals, part, f"left over: {left}")
