"""The proof again, on the machine that serves: every target that runs here against PyTorch's scores in the bundle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError, nearest
from sdpl.kernels.gpu import find_gpu, named_device
from sdpl.manifest import Verification
from sdpl.runtime.availability import target_obstacle
from sdpl.runtime.measuring import measure_target
from sdpl.runtime.recognizer import Recognizer
from sdpl.verification import compare, failure

BATCHES = (1, 4)  # alternating, so that two batch sizes are tried


@dataclass(frozen=True)
class Failed:
    """A target that should give the answers here and does not: damaged, crashed, or other scores."""

    reason: str


Result = Verification | Failed | str  # a target's: the comparison that passed, what is wrong, or why it cannot run here


def verify(
    path: Path,
    say: Callable[[str, Result], None] = lambda target, result: None,
    targets: Sequence[str] = (),
    device: int | None = None,
) -> dict[str, Result]:
    """Compare every target of a bundle that runs here, and write the results into its manifest; time each for `auto`.

    targets: only these. device: the number of the GPU, as for `Recognizer.open`. Returns, for each target, the
    comparison, or why it cannot run here; `say` is told each as it comes. Raises UserError, after all were tried, when
    one that should run here failed: its files are missing or changed (of targets for other machines too), it crashed,
    or its scores are outside of its limits. Its record then stays as it was; those that passed are written. Also when
    the bundle cannot be written.
    """
    named_device(device)  # before anything is tried
    bundle = Bundle.open(path)
    known = bundle.manifest.targets
    for name in targets:
        if name not in known:
            raise UserError(f"{path}: has no target {name!r}; {nearest(name, known)}")
    results: dict[str, Result] = {}
    unkept: list[UserError] = []  # why times could not be written
    for name in dict.fromkeys(targets or known):
        results[name] = _verify(bundle, name, device, unkept)
        say(name, results[name])
    passed = {name: r for name, r in results.items() if isinstance(r, Verification)}
    if passed:
        bundle.replace_targets({n: known[n].model_copy(update={"verification": v}) for n, v in passed.items()})
    failed = [f"{name} {r.reason}" for name, r in results.items() if isinstance(r, Failed)]
    if failed:
        raise UserError(f"{path}: {'; '.join(failed)}")
    if unkept:
        raise unkept[0]
    return results


def compared(recognizer: Recognizer) -> Verification:
    """The proof with an opened recognizer: scores and embeddings on this machine against PyTorch's in the bundle."""
    images, expected = recognizer.bundle.proof()
    before = recognizer.bundle.manifest.targets[recognizer.target].proof()
    embeddings = recognizer.bundle.proof_embeddings()
    return compare(
        expected,
        score_alternating(recognizer.scores, images),
        before.tolerance,
        None if embeddings is None else (embeddings, score_alternating(recognizer.embedded, images)),
        embedding_limit=before.embedding_limit,
        scored_by="target",
        accuracy=before.accuracy,  # of the export: it needs the labelled data
        environment={**recognizer.backend.describe(), **machine(recognizer.device)},
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
    """Scores [N,C], or embeddings [N,E], of images uint8 [N,S,S,3], in batches of alternating size."""
    scores: list[np.ndarray] = []
    start = 0
    while start < len(images):
        batch = BATCHES[len(scores) % len(BATCHES)]
        scores.append(scorer(images[start : start + batch]))
        start += batch
    return np.concatenate(scores)


def machine(device: int = 0) -> dict[str, str]:
    """The GPU and its driver, where there is one, for the record of a comparison."""
    gpu = find_gpu(device)
    return {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}


def _verify(bundle: Bundle, name: str, device: int | None, unkept: list[UserError]) -> Result:
    """The comparison; what is wrong; or why the target cannot run here."""
    try:
        for file in sorted(set(bundle.manifest.targets[name].files.values())):
            bundle.file(file)
        obstacle = target_obstacle(bundle, name, named_device(device))
        if obstacle is not None:
            return obstacle
        with Recognizer.open(bundle.path, name, device=device) as recognizer:
            result = compared(recognizer)
            wrong = _wrong(result)
            if wrong is None:
                try:
                    measure_target(recognizer)
                except UserError as error:  # a bundle that cannot be written is no worse for that
                    unkept.append(error)
                return result
    except UserError as error:
        return Failed(f"failed: {error}")
    except Exception as error:  # whatever its engine raises: the other targets are still tried
        lines = str(error).splitlines() or ["no reason given"]
        return Failed(f"crashed: {type(error).__name__}: {lines[0]}")
    return Failed(f"does not give PyTorch's answers on this machine: {wrong}.")


def _wrong(result: Verification) -> str | None:
    """What is wrong with a comparison; mAP was judged by the export, with the limit it was given."""
    return failure(result, max_mAP_drop=math.inf)
