"""What a bundle's manifest says: its records, checked as a whole when it is read. The folder: `sdpl.bundle`."""

import math
import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from sdpl.errors import UserError, listed
from sdpl.targets import BACKENDS, PRECISIONS
from sdpl.text import UNSAFE, name_problem, path_problem

FORMAT_VERSION = 4
OLDEST_VERSION = 3  # had no embeddings and is still read
MANIFEST = "manifest.json"
CACHE = "cache"  # folder of what engines write on the serving machine; no part of the manifest
MAX_FILES = 10_000  # files or targets named in it
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
    embedding_cosine: float | None = Field(default=None, description="the least, between an image's two embeddings")
    embedding_limit: float | None = None
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
    ONNX graph image -> u, g; "engine" what was built of one of the two; "head" the operator's constants; "cubin.sm86"
    and so on the kernel for a compute capability, "resize.sm86" that of the resize.
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
        needs = ("encoder", "head") if backend.needs_gpu and not self.is_whole else ("model",)
        needs = (*needs, "engine") if backend.builds_engines else needs
        missing = [role for role in needs if role not in self.files]
        if missing:
            raise ValueError(f"its files lack {', '.join(missing)}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether one graph takes an image to scores; on a GPU a separable head's, without a kernel of ours."""
        return "model" in self.files

    @property
    def polynomial(self) -> int:
        """Of every 8 tanh of its kernel, how many are a polynomial."""
        tanh = self.notes.get("tanh")
        found = tanh.get("polynomial_of_8") if isinstance(tanh, dict) else 0
        return found if isinstance(found, int) and 0 <= found <= 8 else 0

    @property
    def status(self) -> str:
        """ "verified", or "built, not run" where its proof was computed without it."""
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
    embedding_size: int | None = Field(default=None, gt=0, le=65536, description="E; None where it gives no embeddings")
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
