"""The `model.sdpl` directory: manifest, files, hashes. Needs neither torch nor a GPU.

A bundle is trusted only as far as its manifest goes: a file is handed out after its size and SHA-256 have
been checked, and no path may leave the directory.
"""

import hashlib
import json
import math
import re
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
from sdpl.files import one_at_a_time, recover_folder, replace_file
from sdpl.onnx_interface import NotOnnxError, read_interface
from sdpl.targets import BACKENDS, PRECISIONS
from sdpl.text import UNSAFE, name_problem, path_problem

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
PROOF = "proof.safetensors"  # images uint8 [N,S,S,3] and PyTorch's scores float32 [N,C]
HEAD = "head.safetensors"  # the operator's constants v [C,K], q [K], t [C,E], float32
MAX_MANIFEST, MAX_FILES = 64 << 20, 10_000  # bytes, and files or targets named in it
CACHE = "cache"  # folder of what engines write on the serving machine; no part of the manifest


Cells = Annotated[int, Field(gt=0, le=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileRecord(_Record):
    """What a file of the bundle must be: its SHA-256 and its size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=1 << 42)


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
    files: dict[str, str] = Field(max_length=100)
    built_with: dict[str, str]
    compute_capability: str | None = None
    profile: Profile | None = None
    workspace_bytes: int | None = None
    build_s: float
    notes: dict[str, Any] = {}
    verification: Verification | None = Field(default=None, description="None only while an export is at work")

    @model_validator(mode="after")
    def _has_its_files(self) -> "Target":
        backend = BACKENDS[self.backend]
        two_stages = ("encoder", "head", *(("engine",) if backend.builds_engines else ()))
        needs = two_stages if backend.needs_gpu else ("model",)
        missing = [role for role in needs if role not in self.files]
        if missing:
            raise ValueError(f"its files lack {', '.join(missing)}")
        return self

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

    image_size: int = Field(gt=0, le=4096)
    resize: Literal["squash, bicubic, antialiased"] = "squash, bicubic, antialiased"
    layout: Literal["uint8 NHWC RGB"] = "uint8 NHWC RGB"
    normalisation: Literal["inside the graph"] = "inside the graph"


class Manifest(_Record):
    """Everything about a bundle but its weights."""

    format_version: int = Field(gt=0)
    sdpl_version: str = Field(max_length=100)
    created: str = Field(max_length=100)
    categories: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    thresholds: tuple[float, ...]
    preprocessing: Preprocessing
    probability: Literal["sigmoid", "softmax"]
    inverse_temperature: float = Field(gt=0, allow_inf_nan=False)
    checkpoint_sha256: str
    config: dict[str, Any]
    map_size: tuple[Cells, Cells] = Field(description="height and width of the attention map, in cells")
    targets: dict[str, Target]
    default_target: str | None = Field(default=None, description="what `auto` takes where it runs; named by the export")
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        if len(files) > MAX_FILES:
            raise ValueError(f"names {len(files):,} files, more than a bundle has")
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0") or not path.parts:
                raise ValueError(f"the path {name!r} leaves the bundle")
            is_odd = path.as_posix() != name or path.parts[0] in (MANIFEST, CACHE)
            if is_odd or UNSAFE.search(name) or path_problem(name):
                raise ValueError(f"{name!r} is no path of a file in a bundle")
        return files

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: dict[str, Target]) -> dict[str, Target]:
        odd = [name for name in targets if not re.fullmatch("[a-z0-9:.-]{1,60}", name)]
        if odd or len(targets) > MAX_FILES:
            raise ValueError(f"{listed(map(repr, odd))}: is no name of a target")
        return targets

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        if len(self.thresholds) != len(self.categories) or len(set(self.categories)) < len(self.categories):
            raise ValueError("needs one threshold for each category, and every category once")
        problem = next(filter(None, map(name_problem, self.categories)), None)
        if problem or any(map(math.isnan, self.thresholds)):
            raise ValueError(problem or "a threshold is NaN")
        for target, record in self.targets.items():
            unknown = [name for name in record.files.values() if name not in self.files]
            if unknown:
                raise ValueError(f"target {target} names files that the bundle does not list: {listed(unknown)}")
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
        recover_folder(path)
        if not (path / MANIFEST).is_file():
            what = "no such bundle" if not path.exists() else f"is not a bundle (it has no {MANIFEST})"
            raise UserError(f"{path}: {what}. sdpl-export makes one from a checkpoint.")
        try:
            if (path / MANIFEST).stat().st_size > MAX_MANIFEST:
                raise UserError(f"{path / MANIFEST}: has more than {MAX_MANIFEST >> 20} MB, which no export writes.")
            text = (path / MANIFEST).read_bytes()
        except OSError as error:
            raise UserError(f"{path / MANIFEST}: cannot be read ({error.strerror}).") from None
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
        try:
            is_inside = path.resolve().is_relative_to(self.path.resolve())
        except (OSError, RuntimeError):  # a link to itself
            is_inside = False
        if not is_inside:
            raise UserError(f"{path}: points outside the bundle; it is not opened.")
        if not path.is_file():
            raise UserError(f"{path}: is missing from the bundle. Export the checkpoint again.")
        try:
            same = path.stat().st_size == record.size and sha256(path) == record.sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
        if not same:
            raise UserError(f"{path}: is not the file that was exported (hash differs). Export the checkpoint again.")
        if name.endswith(".onnx"):
            self._check_graph(path)
        return path

    def head(self, target: Target) -> dict[str, np.ndarray]:
        """The operator's constants of a target, float32: v [C,K], q [K], t [C,E]. Raises UserError for other ones."""
        path = self.file(target.files["head"])
        constants = _tensors(path)
        v, q, t = (constants.get(name, np.zeros(0, np.float32)) for name in "vqt")
        categories = len(self.manifest.categories)
        fits = v.ndim == t.ndim == 2 and len(v) == len(t) == categories and q.shape == v.shape[1:] and t.shape[1] > 0
        if not fits or v.size == 0 or not all(x.dtype == np.float32 and np.isfinite(x).all() for x in (v, q, t)):
            raise UserError(f"{path}: is no head for {categories} categories. Export the checkpoint again.")
        return {"v": v, "q": q, "t": t}

    def _check_graph(self, path: Path) -> None:
        """Raise UserError when a graph does not take and give what the manifest says, or reads unlisted files."""
        manifest = self.manifest
        side, categories = manifest.preprocessing.image_size, len(manifest.categories)
        locations = math.prod(manifest.map_size)
        expected = {"image": [side, side, 3], "scores": [categories], "attention": [categories, locations]}
        try:
            found = read_interface(path)
        except (NotOnnxError, OSError, ValueError) as error:
            raise UserError(f"{path}: is no ONNX graph of a bundle ({error}). Export the checkpoint again.") from None
        for location in found.external:  # of the manifest too, or not opened
            self.file((PurePosixPath(path.relative_to(self.path).parent.as_posix()) / location).as_posix())
        shapes = found.inputs | found.outputs
        gives = [{"scores", "attention"}, {"u", "g"}]
        if found.inputs.keys() != {"image"} or found.outputs.keys() not in gives or len(shapes["image"]) != 4:
            names = f"takes {listed(found.inputs)} and gives {listed(found.outputs)}"
            raise UserError(f"{path}: {names}, not what a bundle's graph does. Export the checkpoint again.")
        odd = [name for name, shape in expected.items() if name in shapes and shapes[name][1:] != shape]
        if "u" in shapes:
            odd += [name for name in "ug" if len(shapes[name]) != 3 or shapes[name][1] not in (locations, None)]
        if odd:
            what = f"size, categories or map: {listed(odd)}"
            raise UserError(f"{path}: does not fit its manifest ({what}). Export the checkpoint again.")

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
        path = self.file(PROOF)
        tensors = _tensors(path)
        images, scores = (tensors.get(name, np.zeros(0)) for name in ("images", "scores"))
        side, categories = self.manifest.preprocessing.image_size, len(self.manifest.categories)
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == (side, side, 3) and len(images) > 0
        if not fits or scores.dtype != np.float32 or scores.shape != (len(images), categories):
            raise UserError(f"{path}: is no proof for {categories} categories. Export the checkpoint again.")
        if not np.isfinite(scores).all():
            raise UserError(f"{path}: its scores are not finite. Export the checkpoint again.")
        return images, scores


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Export the checkpoint again.") from None


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
