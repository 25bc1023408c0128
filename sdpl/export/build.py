"""model.ckpt to model.sdpl: fold, write and prove every target, and only then put the bundle in place."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.numpy import save_file

from sdpl import __version__
from sdpl.bundle import HEAD, PROOF, Bundle, may_replace, sha256, write_manifest
from sdpl.data.formats import in_order
from sdpl.data.images import LabelledImages, evenly_taken
from sdpl.errors import UserError, nearest
from sdpl.export.artifacts import Artifacts
from sdpl.export.engines import require_possible, write_gpu_files
from sdpl.export.fused_head import require_exportable
from sdpl.export.proof import Limits, Prover, prove_targets
from sdpl.export.separable import MAX_RANK, RANKS
from sdpl.files import naming, replace_folder
from sdpl.manifest import CACHE, Preprocessing, Profile, Target
from sdpl.preprocess import preprocess
from sdpl.progress import Progress, Report, silent
from sdpl.targets import TargetSpec, default_targets
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.config import Config
from sdpl.train.model import PartialLabelModel

MAX_PROOF_IMAGES = 32
MAX_CALIBRATION_IMAGES = 32
SEPARABLE_ON_GPU = ("fp16", "fp32")  # bfloat16's 8 bits move attention five times as much
MAX_COMPARED_IMAGES = 256  # that a separable head is compared with the exact one on


@dataclass(frozen=True)
class Options:
    """What to export and how to prove it.

    images: of the proof, instead of those the checkpoint carries. calibrate: images for int8 and for the separable
    head. terms: of the separable head; None for the fewest that are exact enough. tanh: "unit", or "mixed" where the
    kernel may take a share of tanh as a polynomial. evaluation: labelled data, on which every target's mAP is compared
    with PyTorch's. default_target: what `auto` takes where it runs, in its precision; None for float32.
    """

    targets: tuple[TargetSpec, ...] = field(default_factory=default_targets)
    head: str = "exact"
    terms: int | None = None
    tanh: str = "unit"
    profile: Profile = field(default_factory=Profile)
    images: list[Path] | None = None
    calibrate: list[Path] | None = None
    evaluation: LabelledImages | None = None
    limits: Limits = field(default_factory=Limits)
    default_target: str | None = None

    def check(self) -> None:
        """Raise UserError for what cannot work, before anything that takes long."""
        if self.default_target is not None and self.default_target not in map(str, self.targets):
            raise UserError(
                f"--default-target {self.default_target!r}: {nearest(self.default_target, map(str, self.targets))}; "
                "it is one of those that are exported (--target)."
            )
        for spec in self.targets:
            if spec.precision == "int8" and not self.calibrate:
                raise UserError(f"--target {spec}: int8 needs real images to calibrate on: add --calibrate FOLDER.")
            require_possible(spec)
        if self.head == "separable" and not self.calibrate:
            raise UserError("--head separable is fitted to real images: add --calibrate FOLDER.")
        if self.terms is not None and self.head != "separable":
            raise UserError(f"--terms {self.terms} is for the separable head: add --head separable.")
        if self.terms is not None and not 1 <= self.terms <= MAX_RANK:
            raise UserError(f"--terms {self.terms}: expected 1 to {MAX_RANK} terms.")
        if self.tanh == "mixed" and (self.head != "exact" or not any(s.backend.needs_gpu for s in self.targets)):
            raise UserError(
                "--tanh mixed is for the kernel: add a GPU target, such as rtx:sm86:fp16, with --head exact."
            )
        wrong = [s for s in self.targets if s.backend.needs_gpu and s.precision not in SEPARABLE_ON_GPU]
        if self.head == "separable" and wrong:
            raise UserError(
                f"--target {wrong[0]}: --head separable on a GPU is float16 or float32: take a target of fp16 or fp32, "
                "or --head exact."
            )


def export(checkpoint: Path, out: Path, options: Options | None = None, report: Report = silent) -> dict[str, Target]:
    """Export a checkpoint as the bundle `out`; returns its targets, each with its proof.

    What can run on this machine is run, by the runtime that serves it, from the finished bundle before it is put in
    place. Raises UserError when anything is wrong, when scores differ from PyTorch's by more than the limits, or when
    `out` cannot be written; what was at `out` before is then untouched.
    """
    options = options or Options()
    options.check()
    content = load_checkpoint(checkpoint)
    config, model = restore_model(content, str(checkpoint))
    size, probability = config.model.image_size, config.model.probability
    require_exportable(config.model, options.targets, options.head)
    images = _proof_images(content["proof_images"], options.images, size)
    data = options.evaluation and in_order(options.evaluation, model.categories, "--eval")
    with replace_folder(out, may_replace) as folder, naming(folder, out):
        report(Progress(f"PyTorch's scores of {len(images)} images" + (f" and of {len(data)}" if data else "")))
        prover = Prover.of(model.answerer(), images, options.limits, data)
        _write_proof(folder, prover)
        fields = _manifest_fields(checkpoint, config, model, content["thresholds"], options.default_target)
        calibration, metadata = _calibration(options.calibrate, size), graph_metadata(fields)
        ranks = RANKS if options.terms is None else (options.terms,)
        artifacts = Artifacts(folder, model, size, probability, calibration, metadata, report, ranks)
        unseen = _unseen(images, options, size)
        targets = {str(spec): _make(spec, artifacts, unseen, options, report) for spec in options.targets}
        write_manifest(folder, **fields, targets=targets)
        targets = prove_targets(Bundle.open(folder), list(targets), prover, report)
        shutil.rmtree(folder / CACHE, ignore_errors=True)  # what this machine's engines compiled, of no use on others
    report(Progress(f"wrote {out}"))
    return targets


def _write_proof(folder: Path, prover: Prover) -> None:
    embeddings = prover.expected.embeddings
    more = {} if embeddings is None else {"embeddings": embeddings}
    save_file({"images": prover.images, "scores": prover.expected.scores, **more}, folder / PROOF)


def _make(
    spec: TargetSpec,
    artifacts: Artifacts,
    held_out: np.ndarray,
    options: Options,
    report: Report,
) -> Target:
    """Write one target's files."""
    report(Progress(f"{spec}: building"))
    start = time.perf_counter()
    built_with = {"torch": torch.__version__, "onnx": onnx.__version__}
    fields: dict[str, Any] = {}
    if not spec.backend.needs_gpu:
        files, notes = artifacts.whole_model(spec.graph, options.head, held_out)
        library = spec.backend.load()
        built_with |= {"onnxruntime": onnxruntime.__version__, spec.backend.package: library.__version__}
    else:
        polynomial = 0
        if options.head == "separable":
            graph, notes = artifacts.whole_model(spec.precision, options.head, held_out)
        else:
            name, notes = artifacts.gpu_encoder(spec.precision)
            graph = {"encoder": name, "head": HEAD}
            if options.tanh == "mixed":
                tanh = artifacts.polynomial(spec.precision, held_out)
                notes, polynomial = {**notes, "tanh": tanh}, tanh["polynomial_of_8"]
        gpu = write_gpu_files(artifacts.folder, graph, spec, options.profile, report, polynomial)
        files, fields, built_with = gpu.files, gpu.fields, built_with | gpu.built_with
    return Target(
        backend=spec.backend.name,
        precision=spec.precision,
        files=files,
        built_with=built_with,
        build_s=round(time.perf_counter() - start, 2),
        notes=notes,
        **fields,
    )


def _manifest_fields(
    checkpoint: Path, config: Config, model: PartialLabelModel, thresholds: list[float], default_target: str | None
) -> dict[str, Any]:
    """The manifest, but for its targets and files."""
    return {
        "sdpl_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "categories": model.categories,
        "thresholds": tuple(thresholds),
        "preprocessing": Preprocessing(image_size=config.model.image_size),
        "probability": config.model.probability,
        "inverse_temperature": float(model.inverse_temperature),
        "checkpoint_sha256": sha256(checkpoint),
        "config": _shareable(config),
        "map_size": tuple(model.map_size),
        "embedding_size": model.embedding_size,
        "default_target": default_target,
    }


def graph_metadata(fields: dict[str, Any]) -> dict[str, str]:
    """What a graph says of itself in metadata_props, for tools that have no manifest: JSON values, with the keys that
    the field reads (`names`, `imgsz`, `task`), and the checkpoint's hash, which the manifest has too."""
    preprocessing = fields["preprocessing"]
    return {
        "names": json.dumps(dict(enumerate(fields["categories"]))),
        "thresholds": json.dumps(fields["thresholds"]),
        "imgsz": json.dumps([preprocessing.image_size] * 2),
        "resize": preprocessing.resize,
        "layout": preprocessing.layout,
        "normalisation": preprocessing.normalisation,
        "task": "multi-label classification",
        "probability": fields["probability"],
        "map_size": json.dumps(fields["map_size"]),
        "version": f"sdpl {fields['sdpl_version']}",
        "created": fields["created"],
        "checkpoint_sha256": fields["checkpoint_sha256"],
    }


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


def _unseen(proof: np.ndarray, options: Options, image_size: int) -> np.ndarray:
    """uint8 [N,S,S,3] that a separable head is not fitted to: the proof's, and the images given for calibration that
    were too many for it."""
    if options.head != "separable" or not options.calibrate:
        return proof
    rest = sorted(set(options.calibrate) - set(_spread(options.calibrate)))[: MAX_COMPARED_IMAGES - len(proof)]
    return np.stack([*proof, *(preprocess(path, image_size) for path in rest)])


def _spread(paths: list[Path]) -> list[Path]:
    """At most `MAX_CALIBRATION_IMAGES` of the given images, evenly taken."""
    return [paths[i] for i in evenly_taken(len(paths), MAX_CALIBRATION_IMAGES)]


def _calibration(paths: list[Path] | None, image_size: int) -> np.ndarray | None:
    """uint8 [N,S,S,3] of at most `MAX_CALIBRATION_IMAGES`, evenly spread over the given ones."""
    if not paths:
        return None
    return np.stack([preprocess(path, image_size) for path in _spread(paths)])
