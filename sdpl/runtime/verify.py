"""The proof again, on the machine that serves: every target that runs here against PyTorch's scores in the bundle."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdpl.bundle import Bundle, Target, Verification
from sdpl.errors import UserError
from sdpl.kernels.launch import Gpu, find_gpu
from sdpl.proof import compare, failure
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.usable import target_obstacle

BATCHES = (1, 4)  # alternating, so that two batch sizes are tried


def verify(
    path: Path,
    say: Callable[[str, Verification | str], None] = lambda target, result: None,
    only: Callable[[Target], bool] = bool,
) -> dict[str, Verification | str]:
    """Compare every target of a bundle that runs here, and write the results into its manifest.

    Returns, for each target, the comparison, or why it cannot run here; `say` is told each as it comes. Raises
    UserError with the numbers when one is outside of its limits, and when the manifest cannot be written; it then
    stays as it was.
    """
    bundle = Bundle.open(path)
    results: dict[str, Verification | str] = {}
    for name, target in bundle.manifest.targets.items():
        if not only(target):
            continue
        results[name] = target_obstacle(bundle, name) or _verify(bundle, name, target)
        say(name, results[name])
    compared = {name: r for name, r in results.items() if isinstance(r, Verification)}
    for name, result in compared.items():
        wrong = failure(result, max_map_drop=math.inf)  # mAP was judged by the export, with the limit it was given
        if wrong:
            raise UserError(f"{path}: {name} does not give PyTorch's answers on this machine: {wrong}.")
    if compared:
        records = {n: bundle.manifest.targets[n].model_copy(update={"verification": v}) for n, v in compared.items()}
        bundle.replace_targets(records)
    return results


def run_here(folder: Path, path: Path) -> None:
    """For a bundle being exported, in a temporary folder before it is put at `path`: verify the engines that were only
    built so far, where this machine can run them."""
    try:
        verify(folder, only=lambda target: target.verification.of == "graph")
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(path))) from None


def _verify(bundle: Bundle, name: str, target: Target) -> Verification | str:
    """The comparison, or why the target could not even be opened."""
    images, expected = bundle.proof()
    try:
        recognizer = Recognizer.open(bundle.path, name)
    except UserError as error:
        return str(error)
    with recognizer:
        description = recognizer.backend.describe()
        scores, start = [], 0
        while start < len(images):
            batch = BATCHES[len(scores) % len(BATCHES)]
            scores.append(recognizer.scores(images[start : start + batch]))
            start += batch
    gpu = find_gpu()
    machine = {"gpu": gpu.name, "driver": gpu.driver} if isinstance(gpu, Gpu) else {}
    before = target.verification
    return compare(
        expected,
        np.concatenate(scores),
        before.tolerance,
        of="target",
        accuracy=before.accuracy,  # of the export: it needs the labelled data
        environment={**description, **machine},
    )
