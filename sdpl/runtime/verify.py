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
from sdpl.runtime.backends import Wanted, open_backend
from sdpl.runtime.measuring import measure_target
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.timings import Timing, keep
from sdpl.verification import Answers, answer_all, compare, failure

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
    unrecorded: Callable[[UserError], None] = lambda reason: None,
) -> dict[str, Result]:
    """Compare every target of a bundle that runs here, and write the results into its manifest; time each for `auto`.

    targets: only these. device: the number of the GPU, as for `Recognizer.open`. Returns, for each target, the
    comparison, or why it cannot run here; `say` is told each as it comes. Raises UserError at once when the proof
    itself is missing or damaged, and, after all were tried, when one that should run here failed: its files are missing
    or changed (of targets for other machines too), it crashed, or its scores are outside of its limits. Its record then
    stays as it was; those that passed are written. Also when the bundle was replaced meanwhile. One that cannot be
    written is verified all the same: `unrecorded` is told what was not recorded, and why.
    """
    number = named_device(device)  # before anything is tried
    bundle = Bundle.open(path)
    known = bundle.manifest.targets
    for name in targets:
        if name not in known:
            raise UserError(f"{path}: has no target {name!r}; {nearest(name, known)}")
    proof = bundle.proof()
    results: dict[str, Result] = {}
    measured: dict[str, Timing] = {}
    for name in dict.fromkeys(targets or known):
        results[name], timing = _verify(bundle, name, number, proof)
        measured |= {} if timing is None else {name: timing}
        say(name, results[name])
    passed = {name: r for name, r in results.items() if isinstance(r, Verification)}
    if passed:
        missing = "the result was not recorded, nor were the times"
        try:
            bundle.replace_targets({n: known[n].model_copy(update={"verification": v}) for n, v in passed.items()})
            missing = "the result was recorded, the times were not"
            keep(bundle, measured, number)
        except UserError as error:
            if not bundle.is_unchanged():
                raise
            unrecorded(UserError(f"{missing}: {error}"))
    failed = [f"{name} {r.reason}" for name, r in results.items() if isinstance(r, Failed)]
    if failed:
        raise UserError(f"{path}: {'; '.join(failed)}")
    return results


def compared(recognizer: Recognizer, images: np.ndarray, expected: Answers) -> Verification:
    """The proof with an opened recognizer: its answers for images uint8 [N,S,S,3] against PyTorch's."""
    before = recognizer.bundle.manifest.targets[recognizer.target].proof()
    return compare(
        expected,
        answers(recognizer, images),
        before.tolerance,
        embedding_limit=before.embedding_limit,
        scored_by="target",
        accuracy=before.accuracy,  # of the export: it needs the labelled data
        environment={**recognizer.backend.describe(), **machine(recognizer.device)},
    )


def prove(recognizer: Recognizer) -> Verification:
    """The bundle's own proof with an opened recognizer. Raises UserError with the numbers when its answers are outside
    of its limits."""
    verification = compared(recognizer, *recognizer.bundle.proof())
    wrong = _wrong(verification)
    if wrong:
        path, target = recognizer.bundle.path, recognizer.target
        raise UserError(f"{path}: {target} does not give PyTorch's answers on this machine: {wrong}.")
    return verification


def answers(recognizer: Recognizer, images: np.ndarray) -> Answers:
    """What an opened target says about images uint8 [N,S,S,3], in batches of alternating size.

    On a CPU one call gives scores and embeddings; the first image's scores come from the call for scores alone, the one
    that serves. On a GPU that is a CUDA graph of its own: all scores come from it.
    """
    gives_embeddings = recognizer.bundle.manifest.embedding_size is not None
    on_gpu = recognizer.backend.largest_on_device > 0

    def run(batch: np.ndarray) -> Answers:
        if not gives_embeddings:
            return Answers(recognizer.scores(batch))
        scores, embeddings = recognizer.embeddings(batch)
        return Answers(recognizer.scores(batch) if on_gpu else scores, embeddings)

    found = answer_all(run, images, BATCHES)
    if on_gpu or not gives_embeddings:
        return found
    return Answers(np.concatenate([recognizer.scores(images[:1]), found.scores[1:]]), found.embeddings)


def machine(device: int = 0) -> dict[str, str]:
    """The GPU and its driver, where there is one, for the record of a comparison."""
    gpu = find_gpu(device)
    return {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}


def _verify(bundle: Bundle, name: str, device: int, proof: tuple[np.ndarray, Answers]) -> tuple[Result, Timing | None]:
    """The comparison; what is wrong; or why the target cannot run here. With the time of one that passed."""
    try:
        for file in sorted(set(bundle.manifest.targets[name].files.values())):
            bundle.file(file)
        obstacle = target_obstacle(bundle, name, device)
        if obstacle is not None:
            return obstacle, None
        with Recognizer(bundle, open_backend(bundle, Wanted(name, device=device)), device) as recognizer:
            result = compared(recognizer, *proof)
            wrong = _wrong(result)
            if wrong is None:
                return result, measure_target(recognizer, proof[0])
    except UserError as error:
        return Failed(f"failed: {error}"), None
    except Exception as error:  # whatever its engine raises: the other targets are still tried
        lines = str(error).splitlines() or ["no reason given"]
        return Failed(f"crashed: {type(error).__name__}: {lines[0]}"), None
    return Failed(f"does not give PyTorch's answers on this machine: {wrong}."), None


def _wrong(result: Verification) -> str | None:
    """What is wrong with a comparison; mAP was judged by the export, with the limit it was given."""
    return failure(result, max_mAP_drop=math.inf)
