"""The proof again, on the machine that serves: every target that runs here against PyTorch's scores in the bundle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdpl.bundle import Bundle, Target, Verification
from sdpl.errors import UserError
from sdpl.kernels.launch import Gpu, find_gpu
from sdpl.kernels.tolerance import TOLERANCES
from sdpl.proof import compare, failure
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.usable import target_obstacle

BATCHES = (1, 4)  # alternating, so that two batch sizes are tried


def verify(
    path: Path, report: Callable[[str, str], None] = lambda target, line: None, only: Callable[[Target], bool] = bool
) -> dict[str, Verification | str]:
    """Compare every target of a bundle that runs here, and write the results into its manifest.

    Returns, for each target, the comparison, or why it cannot run here. Raises UserError with the numbers when one
    is outside of its limits; the manifest then stays as it was.
    """
    bundle = Bundle.open(path)
    results: dict[str, Verification | str] = {}
    for name, target in bundle.manifest.targets.items():
        if not only(target):
            continue
        report(name, "running")
        results[name] = target_obstacle(bundle, name) or _verify(bundle, name, target)
    compared = {name: r for name, r in results.items() if isinstance(r, Verification)}
    for name, result in compared.items():
        target = bundle.manifest.targets[name]
        wrong = failure(result, TOLERANCES[target.precision].map_drop)
        if wrong:
            raise UserError(f"{path}: {name} does not give PyTorch's answers on this machine: {wrong}.")
    if compared:
        records = {n: bundle.manifest.targets[n].model_copy(update={"verification": v}) for n, v in compared.items()}
        bundle.replace_targets(records)
    return results


def run_here(path: Path) -> None:
    """For a bundle being exported: verify the engines that were only built so far, where this machine can run them."""
    verify(path, only=lambda target: target.verification.of == "graph")


def _verify(bundle: Bundle, name: str, target: Target) -> Verification:
    images, expected = bundle.proof()
    with Recognizer.open(bundle.path, name) as recognizer:
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
        accuracy=before.accuracy if before.of == "target" else None,
        environment={**description, **machine},
    )
