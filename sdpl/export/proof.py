"""The proof of an export: every target's scores against PyTorch's, by the code that will serve it. Needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime

from sdpl.bundle import Bundle
from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.evaluate.evaluation import Scorer, evaluate, score_all
from sdpl.export.graphs import BATCH, run_encoder, run_model
from sdpl.manifest import Accuracy, Target, Verification
from sdpl.pipeline import Pixels
from sdpl.progress import Progress, Report
from sdpl.runtime.availability import target_obstacle
from sdpl.runtime.cpu import model_path
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.verify import BATCHES, answers, machine
from sdpl.targets import BACKENDS, PRECISIONS
from sdpl.verification import Answers, Run, answer_all, compare, failure


@dataclass(frozen=True)
class Limits:
    """How far a target may be from PyTorch; None means the precision's own limit."""

    score_difference: float | None = None
    mAP_drop: float | None = None  # noqa: N815, the field writes it so


@dataclass(frozen=True)
class Prover:
    """Compares targets with PyTorch's answers for the proof's images uint8 [N,S,S,3] and, where there is labelled
    data, with its accuracy on that."""

    images: np.ndarray
    expected: Answers
    limits: Limits
    data: LabelledImages | None = None
    accuracy: dict[str, float] | None = None

    @classmethod
    def of(cls, pytorch: Run, images: np.ndarray, limits: Limits, data: LabelledImages | None) -> "Prover":
        """What PyTorch says, computed once."""
        accuracy = _accuracy(lambda batch: pytorch(batch).scores, data, images.shape[1])
        return cls(images, answer_all(pytorch, images, [BATCH]), limits, data, accuracy)

    def prove(self, bundle: Bundle, name: str, report: Report) -> Verification:
        """The comparison of a target, opened from the bundle as a user opens it.

        An engine that cannot run here is compared through the graph it was built from, with the head by its
        specification. Raises UserError with the numbers when it is outside of the limits.
        """
        report(Progress(f"{name}: comparing with PyTorch"))
        target = bundle.manifest.targets[name]
        with _opened(bundle, name, report) as (scorer, answer, about):
            accuracy = _accuracy(scorer, self.data, self.images.shape[1])
            result = compare(
                self.expected,
                answer(self.images),
                self._tolerance(target),
                embedding_limit=None if self.expected.embeddings is None else self._least_cosine(target),
                accuracy=None
                if accuracy is None or self.accuracy is None
                else Accuracy(images=len(self.data or ()), pytorch=self.accuracy, target=accuracy),
                **about,
            )
        limit = self.limits.mAP_drop
        wrong = failure(result, PRECISIONS[target.precision].mAP_drop if limit is None else limit)
        if wrong:
            raise UserError(
                f"{name} does not give PyTorch's answers: {wrong}. Nothing was exported; what was there before is "
                "untouched."
            )
        return result

    def _tolerance(self, target: Target) -> float:
        limit = self.limits.score_difference
        return PRECISIONS[target.precision].score if limit is None else limit

    def _least_cosine(self, target: Target) -> float | None:
        """Of embeddings; whoever allows scores to differ by more than the precision's own limit allows it here too."""
        own = PRECISIONS[target.precision]
        return None if self._tolerance(target) > own.score else own.cosine


def prove_targets(bundle: Bundle, names: list[str], prover: Prover, report: Report) -> dict[str, Target]:
    """Prove these targets of a bundle under construction, and write the comparisons into its manifest."""
    targets = bundle.manifest.targets
    proved = {n: targets[n].model_copy(update={"verification": prover.prove(bundle, n, report)}) for n in names}
    bundle.replace_targets(proved)
    return proved


@contextmanager
def _opened(bundle: Bundle, name: str, report: Report) -> Iterator[tuple[Scorer, Run, dict[str, Any]]]:
    """What scores a batch for a target, what answers for all of the proof's images, and the fields of its comparison
    that say so."""
    target = bundle.manifest.targets[name]
    if target_obstacle(bundle, name) is None:
        try:
            recognizer = Recognizer.open(bundle.path, name)
        except UserError as error:  # what only opening it can tell
            if not BACKENDS[target.backend].needs_gpu:
                raise
            report(Progress(f"{name} cannot be opened here: {error}"))
        else:
            with recognizer:
                environment = {**recognizer.backend.describe(), **machine()}
                yield (
                    recognizer.scores,
                    partial(answers, recognizer),
                    {"scored_by": "target", "environment": environment},
                )
            return
    if target.is_whole:
        run = run_model(model_path(bundle, target))
    else:
        encoder = onnx.load(bundle.file(target.files["encoder"]))
        run = run_encoder(encoder, bundle.head(target), bundle.manifest.probability)
    yield (
        lambda images: run(images).scores,
        lambda images: answer_all(run, images, BATCHES),
        {"scored_by": "graph", "environment": {"onnxruntime": onnxruntime.__version__}},
    )


def _accuracy(scorer: Scorer, data: LabelledImages | None, image_size: int) -> dict[str, float] | None:
    if data is None:
        return None
    result = evaluate(score_all(scorer, data, Pixels(image_size), BATCH), data)
    return {"mAP": result.mAP, "OF1": result.f1["OF1"], "CF1": result.f1["CF1"]}
