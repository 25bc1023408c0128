"""The `model.sdpl` directory: manifest, files, hashes. Needs neither torch nor a GPU.

A bundle is trusted only as far as its manifest goes: a file is handed out after its size and SHA-256 have
been checked, and no path may leave the directory.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sdpl.errors import UserError, listed
from sdpl.files import one_at_a_time, replace_file
from sdpl.targets import BACKENDS, PRECISIONS

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
PROOF = "proof.safetensors"  # images uint8 [N,S,S,3] and PyTorch's scores float32 [N,C]
HEAD = "head.safetensors"  # the operator's constants v [C,K], q [K], t [C,E], float32
CACHE = "cache"  # folder of what engines write on the serving machine; no part of the manifest


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileRecord(_Record):
    """What a file of the bundle must be: its SHA-256 and its size in bytes."""

    sha256: str
    size: int


class Accuracy(_Record):
    """mAP, OF1 and CF1 in percent on one labelled data set, for PyTorch and for the target."""

    images: int
    pytorch: dict[str, float]
    target: dict[str, float]


class Verification(_Record):
    """One comparison of a target's scores with PyTorch's on real images.

    scored_by: "target" when the target itself ran, in the runtime that serves it; "graph" when its engine cannot run on
    the machine that built it, and the ONNX graph it was built from ran in ONNX Runtime instead, with the head by its
    specification.
    """

    scored_by: Literal["target", "graph"]
    images: int
    max_score_difference: float
    mean_score_difference: float
    tolerance: float
    top_k: int
    same_top_k: float = Field(description="fraction of images whose k best categories are the same, in order")
    accuracy: Accuracy | None = None
    environment: dict[str, str] = Field(description="library versions, and the device, of the machine that compared")


class Profile(_Record):
    """The batch sizes an engine takes, and the one it is tuned for."""

    min: PositiveInt = 1
    opt: PositiveInt = 8
    max: PositiveInt = 64

    @model_validator(mode="after")
    def _in_order(self) -> "Profile":
        if not self.min <= self.opt <= self.max:
            raise ValueError("needs min <= opt <= max")
        return self

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


def _one_of(table: Collection[str]) -> Callable[[str], str]:
    """A check that a name is in one of the tables of `sdpl.targets`."""

    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"{name!r} is none of {', '.join(table)}")
        return name

    return check


class Target(_Record):
    """One way to run the model, what it was built with, and the proof that it gives PyTorch's answers.

    files: by role. "model" is a whole ONNX graph, "weights" the part of it that is too large for one file; "encoder" an
    ONNX graph image -> u, g; "engine" a built encoder; "head" the operator's constants; "cubin sm86" and so on the
    kernel for a compute capability.
    """

    backend: Annotated[str, AfterValidator(_one_of(BACKENDS))]
    precision: Annotated[str, AfterValidator(_one_of(PRECISIONS))]
    files: dict[str, str]
    built_with: dict[str, str]
    compute_capability: str | None = None
    profile: Profile | None = None
    workspace_bytes: int | None = None
    build_s: float
    notes: dict[str, Any] = {}
    verification: Verification | None = Field(default=None, description="None only while an export is at work")

    @property
    def status(self) -> str:
        return "verified" if self.proof().scored_by == "target" else "built, not run"

    def proof(self) -> Verification:
        """The comparison with PyTorch. Raises UserError for a target that was never compared."""
        if self.verification is None:
            raise UserError("a target of the bundle was never compared with PyTorch: export the checkpoint again.")
        return self.verification


class Preprocessing(_Record):
    """How an image becomes the model's input; `sdpl.preprocess` is the definition."""

    image_size: int = Field(gt=0)
    resize: Literal["squash, bicubic, antialiased"] = "squash, bicubic, antialiased"
    layout: Literal["uint8 NHWC RGB"] = "uint8 NHWC RGB"
    normalisation: Literal["inside the graph"] = "inside the graph"


class Manifest(_Record):
    """Everything about a bundle but its weights."""

    format_version: int = Field(gt=0)
    sdpl_version: str
    created: str
    categories: tuple[str, ...] = Field(min_length=1)
    thresholds: tuple[float, ...]
    preprocessing: Preprocessing
    probability: Literal["sigmoid", "softmax"]
    inverse_temperature: float = Field(gt=0)
    checkpoint_sha256: str
    config: dict[str, Any]
    map_size: tuple[PositiveInt, PositiveInt] = Field(description="height and width of the attention map, in cells")
    targets: dict[str, Target]
    default_target: str | None = Field(default=None, description="what `auto` takes where it runs; named by the export")
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0") or not path.parts:
                raise ValueError(f"the path {name!r} leaves the bundle")
        return files

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        if len(self.thresholds) != len(self.categories) or len(set(self.categories)) < len(self.categories):
            raise ValueError("needs one threshold for each category, and every category once")
        if self.default_target is not None and self.default_target not in self.targets:
            raise ValueError(f"the default target {self.default_target!r} is none of its targets")
        return self


class Bundle:
    """An opened bundle: its `manifest` and, through `file`, its files."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Read and check the manifest. Raises UserError when this is no bundle, or one of a newer format."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            what = "no such bundle" if not path.exists() else f"is not a bundle (it has no {MANIFEST})"
            raise UserError(f"{path}: {what}. sdpl-export makes one from a checkpoint.")
        text = (path / MANIFEST).read_bytes()
        try:
            version = _VersionOnly.model_validate_json(text).format_version
            if version != FORMAT_VERSION:
                fix = "update sdpl, or export" if version > FORMAT_VERSION else "export"
                raise UserError(
                    f"{path}: its format version is {version}, this sdpl reads version {FORMAT_VERSION}: "
                    f"{fix} the checkpoint again with this version."
                )
            return cls(path, Manifest.model_validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{path}/{MANIFEST}: {where}: {first['msg']}. Export the checkpoint again.") from None

    def __repr__(self) -> str:
        m = self.manifest
        size = f"{len(m.categories)} categories, {m.preprocessing.image_size} px"
        states = (f"{n} ({t.status})" if t.verification else n for n, t in m.targets.items())
        return f"Bundle({str(self.path)!r}: {size}, {', '.join(states)})"

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, after its size and hash have been checked.

        Raises UserError when it is not in the manifest, missing, changed, or outside of the directory.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise UserError(f"{self.path}: the manifest lists no {name!r} ({listed(self.manifest.files)}).")
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise UserError(f"{path}: points outside the bundle; it is not opened.")
        if not path.is_file():
            raise UserError(f"{path}: is missing from the bundle. Export the checkpoint again.")
        try:
            same = path.stat().st_size == record.size and sha256(path) == record.sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
        if not same:
            raise UserError(f"{path}: is not the file that was exported (hash differs). Export the checkpoint again.")
        return path

    def replace_targets(self, targets: dict[str, Target]) -> None:
        """Write new records of some targets into the manifest, in one step.

        Raises UserError when it cannot be written, or is no longer the manifest that was opened.
        """
        with one_at_a_time(self.path.parent):
            if not self.is_unchanged():
                raise UserError(f"{self.path} was replaced by another command meanwhile; its manifest is left alone.")
            self.manifest = self.manifest.model_copy(update={"targets": self.manifest.targets | targets})
            with replace_file(self.path / MANIFEST) as temporary:
                temporary.write_text(_text(self.manifest))

    def is_unchanged(self) -> bool:
        """Whether the manifest on disk still is the one that was opened."""
        try:
            return Bundle.open(self.path).manifest == self.manifest
        except UserError:
            return False

    def proof(self) -> tuple[np.ndarray, np.ndarray]:
        """The images of the proof, uint8 [N,S,S,3], and PyTorch's scores for them, float32 [N,C]."""
        try:
            tensors = load_file(self.file(PROOF))
            return tensors["images"], tensors["scores"]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{self.path / PROOF}: cannot be read ({error}). Export the checkpoint again.") from None


class _VersionOnly(BaseModel):
    format_version: int


def to_scores(logits: np.ndarray, probability: str) -> np.ndarray:
    """Scores in 0..1 from logits [B,C]: each category's own sigmoid, or the softmax over categories."""
    if probability == "softmax":
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: np.ndarray = exp / exp.sum(axis=1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    return scores


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle and nothing else: only then may an export replace it."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        known = {MANIFEST, *content["files"]}
        inside = [p.relative_to(path) for p in path.rglob("*") if not p.is_dir()]
        return content["format_version"] > 0 and all(p.as_posix() in known or p.parts[0] == CACHE for p in inside)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Hash every file of the folder and write the manifest beside them."""
    files = {
        file.relative_to(folder).as_posix(): FileRecord(sha256=sha256(file), size=file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    (folder / MANIFEST).write_text(_text(manifest))
    return manifest


def _text(manifest: Manifest) -> str:
    return manifest.model_dump_json(indent=2, exclude_none=True) + "\n"
