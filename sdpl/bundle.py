"""The `model.sdpl` directory: manifest, files, hashes. Needs neither torch nor a GPU.

A bundle is trusted only as far as its manifest goes: a file is handed out after its size and SHA-256 have
been checked, and no path may leave the directory.
"""

import hashlib
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sdpl.atomic import is_temporary, remove_leftovers
from sdpl.errors import UserError, listed
from sdpl.files import one_at_a_time, recover_folder, replace_file
from sdpl.manifest import CACHE, FORMAT_VERSION, MANIFEST, OLDEST_VERSION, FileRecord, Manifest, Target
from sdpl.onnx_interface import NotOnnxError, read_interface
from sdpl.text import counted
from sdpl.verification import Answers

PROOF = "proof.safetensors"  # images uint8 [N,S,S,3]; PyTorch's scores [N,C] and embeddings [N,E] of them, float32
HEAD = "head.safetensors"  # the operator's constants v [C,K], q [K], t [C,E], float32
MAX_MANIFEST = 64 << 20  # bytes
LEFT_BY_OTHERS = {".DS_Store", "Thumbs.db", "desktop.ini", ".directory"}  # file managers, in folders that were shown


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
            if not OLDEST_VERSION <= version <= FORMAT_VERSION:
                fix = "update sdpl, or export" if version > FORMAT_VERSION else "export"
                raise UserError(
                    f"{path}: its format version is {version}, this sdpl reads {OLDEST_VERSION} to {FORMAT_VERSION}: "
                    f"{fix} the checkpoint again with this version."
                )
            return cls(path, Manifest.model_validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{path}/{MANIFEST}: {where}: {first['msg']}. Export the checkpoint again.") from None

    def __repr__(self) -> str:
        m = self.manifest
        size = f"{counted(len(m.categories))}, {m.preprocessing.image_size} px"
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
            raise UserError(f"{path}: is missing from the bundle. Copy or export it again.")
        try:
            same = path.stat().st_size == record.size and sha256(path) == record.sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
        if not same:
            raise UserError(f"{path}: is not the file that was exported (hash differs). Copy or export it again.")
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
        expected |= {} if manifest.embedding_size is None else {"embedding": [manifest.embedding_size]}
        try:
            found = read_interface(path)
        except (NotOnnxError, OSError, ValueError) as error:
            raise UserError(f"{path}: is no ONNX graph of a bundle ({error}). Export the checkpoint again.") from None
        for location in found.external:  # of the manifest too, or not opened
            self.file((PurePosixPath(path.relative_to(self.path).parent.as_posix()) / location).as_posix())
        shapes = found.inputs | found.outputs
        gives = [expected.keys() - {"image"}, {"u", "g"}]
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
            remove_leftovers(self.path)
            manifest = self.manifest.model_copy(update={"targets": self.manifest.targets | targets})
            with replace_file(self.path / MANIFEST) as temporary:
                temporary.write_text(_text(manifest), encoding="utf-8")
            self.manifest = manifest

    def is_unchanged(self) -> bool:
        """Whether the manifest on disk still is the one that was opened."""
        try:
            return Bundle.open(self.path).manifest == self.manifest
        except UserError:
            return False

    def proof(self) -> tuple[np.ndarray, Answers]:
        """The images of the proof, uint8 [N,S,S,3], and PyTorch's answers for them: scores float32 [N,C], and
        embeddings float32 [N,E] in a bundle that gives some."""
        path = self.file(PROOF)
        tensors = _tensors(path)
        images, scores = (tensors.get(name, np.zeros(0)) for name in ("images", "scores"))
        side, categories = self.manifest.preprocessing.image_size, len(self.manifest.categories)
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == (side, side, 3) and len(images) > 0
        if not fits or scores.dtype != np.float32 or scores.shape != (len(images), categories):
            raise UserError(f"{path}: is no proof for {categories} categories. Export the checkpoint again.")
        if not np.isfinite(scores).all():
            raise UserError(f"{path}: its scores are not finite. Export the checkpoint again.")
        size = self.manifest.embedding_size
        if size is None:
            return images, Answers(scores)
        embeddings = tensors.get("embeddings", np.zeros(0))
        fits = embeddings.dtype == np.float32 and embeddings.shape == (len(images), size)
        if not fits or not np.isfinite(embeddings).all():
            raise UserError(f"{path}: has no embeddings of {size} numbers. Export the checkpoint again.")
        return images, Answers(scores, embeddings)


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


def may_replace(path: Path) -> bool:
    """Whether an export may replace a folder: it holds a bundle, and nothing that would be lost with it.

    False for any other folder. Raises UserError naming what lies in a bundle and no export wrote; temporaries of
    killed processes, and what file managers leave in every folder, do not count.
    """
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        known = {MANIFEST, *content["files"]}
        if not content["format_version"] > 0:
            return False
        inside = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    names = {p.relative_to(path).as_posix() for p in inside if p.name not in LEFT_BY_OTHERS and not is_temporary(p)}
    strange = sorted(name for name in names - known if not name.startswith(f"{CACHE}/"))
    if strange:
        raise UserError(
            f"{path} holds {listed(strange)}, which no export wrote and this one would delete; move it elsewhere first."
        )
    return True


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Hash every file of the folder and write the manifest beside them."""
    files = {
        file.relative_to(folder).as_posix(): FileRecord(sha256=sha256(file), size=file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")
    return manifest


def _text(manifest: Manifest) -> str:
    return manifest.model_dump_json(indent=2, exclude_none=True) + "\n"
