"""The files of a bundle under construction. What several targets need is made once."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file

from sdpl.bundle import HEAD, to_scores
from sdpl.export.fold import FoldedHead, fold
from sdpl.export.fused_head import add_fused_head
from sdpl.export.graphs import BATCH, encoder_runner, run_encoder
from sdpl.export.head import add_head
from sdpl.export.onnx import encoder_to_onnx, lowered, save, set_metadata
from sdpl.export.precision import narrow
from sdpl.export.quantize import Calibration, Quantized, quantize
from sdpl.export.separable import RANKS, separate
from sdpl.kernels.reference import attention_logits, attention_pool
from sdpl.kernels.tolerance import choose_polynomial
from sdpl.progress import Progress, Report
from sdpl.targets import PRECISIONS
from sdpl.train.model import PartialLabelModel
from sdpl.verification import answer_all

MAX_CATEGORIES = 256  # on which the error of a polynomial is derived


class Artifacts:
    """Writes graphs and constants into a folder, and returns their names in it."""

    def __init__(
        self,
        folder: Path,
        model: PartialLabelModel,
        image_size: int,
        probability: str,
        calibration: np.ndarray | None,
        metadata: dict[str, str],
        report: Report,
        ranks: Sequence[int] = RANKS,
    ):
        """calibration: images uint8 [N,S,S,3] for what is fitted to real features. metadata: of whole models. ranks: of
        a separable head, to try."""
        self._ranks = ranks
        self._metadata = metadata
        self._models: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self.folder, self._model, self._image_size, self._probability = folder, model, image_size, probability
        self._given, self._report = None if calibration is None else Calibration(calibration), report
        self._encoders: dict[tuple[str, bool], tuple[onnx.ModelProto, dict[str, Any]]] = {}

    def whole_model(self, precision: str, head: str, held_out: np.ndarray) -> tuple[dict[str, str], dict[str, Any]]:
        """An ONNX model image -> scores, attention: names of its files by role, and what is worth knowing about it.

        held_out: images for measuring a separable head.
        """
        if precision not in self._models:
            self._models[precision] = self._make_model(precision, head, held_out)
        return self._models[precision]

    def _make_model(self, precision: str, head: str, held_out: np.ndarray) -> tuple[dict[str, str], dict[str, Any]]:
        encoder, notes = self.encoder(precision)
        constants = self.head.constants
        if head == "separable":
            constants, moved = self._separable(held_out, precision)
            notes = {**notes, "separable_head": moved}
        name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
        copied = onnx.ModelProto()
        copied.CopyFrom(encoder)
        if self.head.to_embedding is not None:
            with_head = add_fused_head(copied, constants, self._probability)
        else:
            with_head = add_head(copied, constants, self._probability, head)
        whole = set_metadata(lowered(with_head), self._metadata)
        return save(whole, self.folder / name), notes

    def encoder(self, precision: str, for_tensorrt: bool = False) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The encoder's graph, and what is worth knowing about it."""
        key = (precision, for_tensorrt)
        if key not in self._encoders:
            self._encoders[key] = self._make_encoder(precision, for_tensorrt)
        return self._encoders[key]

    def _make_encoder(self, precision: str, for_tensorrt: bool) -> tuple[onnx.ModelProto, dict[str, Any]]:
        if precision == "fp32":
            image = torch.zeros(2, self._image_size, self._image_size, 3, dtype=torch.uint8)
            self._report(Progress("writing the encoder's ONNX graph"))
            return encoder_to_onnx(self._model.encoder, self.head, image), {}
        exact, _ = self.encoder("fp32")
        if precision in ("fp16", "bf16"):
            return narrow(exact, precision), {}
        self._report(Progress(f"quantizing on {len(self._calibration.images)} images"))
        limit = PRECISIONS["int8"].score / 2
        result = quantize(exact, self._calibration, self._score, limit, for_tensorrt, self._report)
        return result.encoder, {"int8": _notes(result)}

    def gpu_encoder(self, precision: str) -> tuple[str, dict[str, Any]]:
        """The encoder for engines on a GPU as a file of its own, and the head's constants: name and notes."""
        name = f"encoder.{precision}.onnx"
        encoder, notes = self.encoder(precision, for_tensorrt=precision == "int8")
        if not (self.folder / name).exists():
            onnx.save(encoder, self.folder / name)
            save_file(self.head.constants, self.folder / HEAD)
        return name, notes

    def polynomial(self, precision: str, images: np.ndarray) -> dict[str, Any]:
        """How much of tanh the kernel may take as a polynomial in a precision, by the error budget of its dtype, on the
        features of some images; with the share of attention that errors move, before and after."""
        u, _ = encoder_runner(self.encoder("fp32")[0])(images[:BATCH])
        v, q = (self.head.constants[name].astype(np.float64) for name in ("v", "q"))
        some = v[:: -(-len(v) // MAX_CATEGORIES)]
        choice = choose_polynomial(u.astype(np.float64), some, q, PRECISIONS[precision].kernel_dtype)
        moved = {"attention_moved": choice.moved, "by_unit_alone": choice.moved_before}
        return {"polynomial_of_8": choice.of_8, **moved}

    @functools.cached_property
    def head(self) -> FoldedHead:
        return fold(self._model)

    @property
    def _calibration(self) -> Calibration:
        if self._given is None:  # `Options.check` asks for images where they are needed
            raise RuntimeError("no images to calibrate on")
        return self._given

    def _score(self, encoder: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
        return answer_all(run_encoder(encoder, self.head.constants, self._probability), images, [BATCH]).scores

    def _separable(self, held_out: np.ndarray, precision: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Constants of the separable head, fitted to the calibration images; its scores are compared with the exact
        head's on these and on all of `held_out`, as a graph of that precision computes them."""
        fit = self._calibration.images
        self._report(
            Progress(f"fitting a separable head on {len(fit)} images, comparing on {len(fit) + len(held_out)}")
        )
        encode = encoder_runner(self.encoder("fp32")[0])
        images = np.concatenate([fit, held_out])
        parts = [encode(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        u, g = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # [N,L,K], [N,L,E]
        v, q, t = (self.head.constants[name] for name in ("v", "q", "t"))

        def scores(logits_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            """[N,C], a few images at a time."""
            blocks = (slice(i, i + BATCH) for i in range(0, len(u), BATCH))
            logits = np.concatenate([attention_pool(logits_of(u[block]), g[block], t)[0] for block in blocks])
            return to_scores(logits, self._probability)

        exact = scores(lambda some: attention_logits(some, v, q))
        narrow = precision == "fp16"
        fitted = separate(
            u[: len(fit)],
            u[len(fit) :],
            v,
            q,
            lambda found: float(np.abs(scores(found.scores) - exact).max()),
            PRECISIONS["fp16" if narrow else "fp32"].score,
            "float16" if narrow else "float32",
            self._ranks,
        )
        notes = {
            "terms": fitted.rank,
            "dtype": fitted.dtype,
            "attention_moved": fitted.attention_moved,
            "max_score_difference": fitted.score_difference,
            "compared_images": len(images),
        }
        return {"x": fitted.x, "weight": fitted.weight, "t": t}, notes


def _notes(result: Quantized) -> dict[str, Any]:
    return {
        "calibration_images": result.images,
        "max_score_difference_on_them": result.max_score_difference,
        "left_in_float": result.left_in_float,
    }
