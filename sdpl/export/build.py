"""model.ckpt to model.sdpl: fold, write, prove, and only then put the bundle in place."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.numpy import save_file

from sdpl import __version__
from sdpl.bundle import (
    DEFAULT_TARGET,
    PROOF,
    Preprocessing,
    Target,
    Verification,
    is_bundle,
    sha256,
    write_manifest,
)
from sdpl.errors import UserError
from sdpl.export.fold import fold
from sdpl.export.onnx import OPSET, write_onnx
from sdpl.export.verify import compare, in_batches, onnx_scorer, require_within
from sdpl.files import replace_folder
from sdpl.preprocess import preprocess
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.config import Config
from sdpl.train.model import PartialLabelModel

ONNX_FILE = "model.onnx"
MAX_PROOF_IMAGES = 32


def export(
    checkpoint: Path, out: Path, image_paths: list[Path] | None = None, report: Callable[[str], None] = print
) -> Verification:
    """Export a checkpoint as the bundle `out`, verified on the checkpoint's held-out images or on the given ones.

    `report` is told each step. Raises UserError when anything is wrong, when scores differ from PyTorch's by
    more than the tolerance, or when `out` cannot be written; what was at `out` before is then untouched.
    """
    content = load_checkpoint(checkpoint)
    config, model = restore_model(content, str(checkpoint))
    images = _proof_images(content["proof_images"], image_paths, config.model.image_size)
    with replace_folder(out, is_bundle) as folder:
        report("folding the head and writing the ONNX graph")
        write_onnx(model.encoder, fold(model), config.model.image_size, config.model.probability, folder / ONNX_FILE)
        report(f"comparing ONNX Runtime with PyTorch on {len(images)} images")
        expected = in_batches(model.scorer(), images)
        actual = in_batches(onnx_scorer(folder / ONNX_FILE), images)
        verification = compare(expected, actual, "float32")
        require_within(verification, DEFAULT_TARGET)
        save_file({"images": images, "scores": expected}, folder / PROOF)
        _write_manifest(folder, checkpoint, config, model, verification)
    report(f"wrote {out}")
    return verification


def _write_manifest(
    folder: Path, checkpoint: Path, config: Config, model: PartialLabelModel, proof: Verification
) -> None:
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    target = Target(
        file=ONNX_FILE, precision="float32", built_with={**versions, "opset": str(OPSET)}, verification=proof
    )
    write_manifest(
        folder,
        sdpl_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        categories=model.categories,
        thresholds=(0.5,) * len(model.categories),
        preprocessing=Preprocessing(image_size=config.model.image_size),
        probability=config.model.probability,
        inverse_temperature=float(model.inverse_temperature),
        checkpoint_sha256=sha256(checkpoint),
        config=_shareable(config),
        map_size=tuple(model.map_size),
        targets={DEFAULT_TARGET: target},
    )


def _shareable(config: Config) -> dict[str, Any]:
    """Model and training configuration, with file names instead of paths: a bundle travels, folders do not."""
    model = asdict(config.model)
    for key in ("backbone_config", "weights", "word_vectors"):
        model[key] = model[key] and Path(model[key]).name
    return {"model": model, "train": asdict(config.train)}


def _proof_images(held_out: torch.Tensor, paths: list[Path] | None, image_size: int) -> np.ndarray:
    """uint8 [N,S,S,3]: the user's images, or the held-out ones that the checkpoint carries."""
    if paths is not None:
        return np.stack([preprocess(path, image_size) for path in paths[:MAX_PROOF_IMAGES]])
    if len(held_out) == 0:
        raise UserError("the checkpoint carries no held-out images to verify on: name some with --images.")
    return held_out.numpy()
