"""The proof again, on the machine that serves: every target that runs here against PyTorch's scores in the bundle."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdpl.bundle import Bundle, Verification
from sdpl.errors import UserError
from sdpl.kernels.gpu import find_gpu
from sdpl.runtime.availability import target_obstacle
from sdpl.runtime.measuring import measure_target
from sdpl.runtime.recognizer import Recognizer
from sdpl.verification import compare, failure

BATCHES = (1, 4)  # alternating, so that two batch sizes are tried


def verify(
    path: Path, say: Callable[[str, Verification | str], None] = lambda target, result: None
) -> dict[str, Verification | str]:
    """Compare every target of a bundle that runs here, and write the results into its manifest; time each for `auto`.

    Returns, for each target, the comparison, or why it cannot run here; `say` is told each as it comes. Raises
    UserError with the numbers when one is outside of its limits, and when the manifest cannot be written; it then
    stays as it was.
    """
    bundle = Bundle.open(path)
    results: dict[str, Verification | str] = {}
    for name in bundle.manifest.targets:
        results[name] = target_obstacle(bundle, name) or _verify(bundle, name)
        say(name, results[name])
    compared = {name: r for name, r in results.items() if isinstance(r, Verification)}
    for name, result in compared.items():
        wrong = _wrong(result)
        if wrong:
            raise UserError(f"{path}: {name} does not give PyTorch's answers on this machine: {wrong}.")
    if compared:
        records = {n: bundle.manifest.targets[n].model_copy(update={"verification": v}) for n, v in compared.items()}
        bundle.replace_targets(records)
    return results


def compared(recognizer: Recognizer) -> Verification:
    """The proof with an opened recognizer: its scores on this machine against PyTorch's in the bundle."""
    images, expected = recognizer.bundle.proof()
    before = recognizer.bundle.manifest.targets[recognizer.target].proof()
    return compare(
        expected,
        score_alternating(recognizer.scores, images),
        before.tolerance,
        scored_by="target",
        accuracy=before.accuracy,  # of the export: it needs the labelled data
        environment={**recognizer.backend.describe(), **machine()},
    )


def prove(recognizer: Recognizer) -> Verification:
    """`compared`, judged: raises UserError with the numbers when it is outside of its limits."""
    verification = compared(recognizer)
    wrong = _wrong(verification)
    if wrong:
        path, target = recognizer.bundle.path, recognizer.target
        raise UserError(f"{path}: {target} does not give PyTorch's answers on this machine: {wrong}.")
    return verification


def score_alternating(scorer: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Scores [N,C] of images uint8 [N,S,S,3], in batches of alternating size."""
    scores: list[np.ndarray] = []
    start = 0
    while start < len(images):
        batch = BATCHES[len(scores) % len(BATCHES)]
        scores.append(scorer(images[start : start + batch]))
        start += batch
    return np.concatenate(scores)


def machine() -> dict[str, str]:
    """The GPU and its driver, where there is one, for the record of a comparison."""
    gpu = find_gpu()
    return {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}


def _verify(bundle: Bundle, name: str) -> Verification | str:
    """The comparison, or why the target could not even be opened."""
    try:
        recognizer = Recognizer.open(bundle.path, name)
    except UserError as error:
        return str(error)
    with recognizer:
        result = compared(recognizer)
        if _wrong(result) is None:
            measure_target(recognizer)
    return result


def _wrong(result: Verification) -> str | None:
    """What is wrong with a comparison; mAP was judged by the export, with the limit it was given."""
    return failure(result, max_mAP_drop=math.inf)
