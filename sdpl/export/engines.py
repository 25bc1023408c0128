"""The files of a GPU target in a folder: kernel, engine; and an engine added to a bundle that is already there."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from sdpl.bundle import Bundle, may_replace, write_manifest
from sdpl.errors import UserError, listed
from sdpl.export.proof import Limits, Prover, prove_targets
from sdpl.export.tensorrt import build_engine, require_buildable
from sdpl.files import naming, replace_folder
from sdpl.kernels.compile import CAPABILITIES, cubin, require_nvrtc, resize_cubin
from sdpl.kernels.launch import supported
from sdpl.manifest import CACHE, Manifest, Profile, Target
from sdpl.progress import Progress, Report, silent
from sdpl.runtime.availability import package_obstacle, precision_obstacle
from sdpl.targets import BACKENDS, PRECISIONS, TargetSpec


@dataclass(frozen=True)
class GpuFiles:
    """Names of a GPU target's files by role, what built them, and the target's other fields."""

    files: dict[str, str]
    built_with: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


def require_possible(spec: TargetSpec) -> None:
    """Raise UserError with the fix when this machine cannot make a target's files."""
    if spec.backend.needs_gpu:
        require_nvrtc()
    elif (obstacle := package_obstacle(spec.backend) or precision_obstacle(spec.backend, spec.precision)) is not None:
        raise UserError(f"--target {spec}: {obstacle}")
    require_buildable(spec)


def write_gpu_files(
    folder: Path,
    graph: dict[str, str],
    spec: TargetSpec,
    profile: Profile,
    report: Report,
    polynomial: int = 0,
) -> GpuFiles:
    """Write what a GPU target needs beside its graph, which is in the folder already, by role: an encoder with the
    head's constants, or a whole model, which needs no kernel of ours for its head. polynomial: of `cubin`."""
    files, whole = dict(graph), "model" in graph
    source = folder / graph["model" if whole else "encoder"]
    engine = build_engine(source, spec, profile, report) if spec.backend.builds_engines else None
    capability = engine.compute_capability if engine else None
    dtype = PRECISIONS[spec.precision].kernel_dtype
    for each in [capability] if capability else CAPABILITIES:
        if not whole:
            code = cubin(supported(each), dtype, polynomial=polynomial)
            name = f"kernels/sm{each}.{dtype}{f'.polynomial{polynomial}' if polynomial else ''}.cubin"
            files[f"cubin.sm{each}"] = _write(folder, name, code)
        files[f"resize.sm{each}"] = _write(folder, f"kernels/sm{each}.resize.cubin", resize_cubin(supported(each)))
    if engine is None:
        return GpuFiles(files, fields={"profile": profile})
    name = f"{'model' if whole else 'encoder'}.engine"
    files["engine"] = _write(folder, f"targets/{str(spec).replace(':', '-')}/{name}", engine.code)
    fields = {"profile": profile, "compute_capability": capability, "workspace_bytes": engine.workspace_bytes}
    return GpuFiles(files, engine.built_with, fields)


def add_engines(
    path: Path,
    specs: tuple[TargetSpec, ...],
    profile: Profile,
    limits: Limits,
    report: Report = silent,
) -> dict[str, Target]:
    """Build engines from a bundle's own graphs for a GPU, for this machine or another, and prove them; no checkpoint
    and no PyTorch. The bundle is replaced when all is done; see `sdpl.export.build.export`."""
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    likes = {spec: _like(manifest, spec) for spec in specs}
    images, expected = bundle.proof()
    with replace_folder(path, lambda _: bundle.is_unchanged() and may_replace(path)) as folder, naming(folder, path):
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)
        made = {str(spec): _engine(folder, spec, like, profile, report) for spec, like in likes.items()}
        fields = {name: getattr(manifest, name) for name in type(manifest).model_fields}
        del fields["files"], fields["format_version"]
        write_manifest(folder, **fields | {"targets": manifest.targets | made})
        for spec, like in likes.items():
            limit = like.proof().tolerance if limits.score_difference is None else limits.score_difference
            prover = Prover(images, expected, Limits(limit))
            made |= prove_targets(Bundle.open(folder), [str(spec)], prover, report)
        if (path / CACHE).is_dir():
            shutil.copytree(path / CACHE, folder / CACHE, dirs_exist_ok=True)
    report(Progress(f"wrote {path}"))
    return made


def _like(manifest: Manifest, spec: TargetSpec) -> Target:
    """The bundle's target whose graph an engine is built from. Raises UserError when there is none, or it cannot be
    built here."""
    of_precision = {t.precision: t for t in manifest.targets.values() if BACKENDS[t.backend].needs_gpu}
    if not spec.backend.builds_engines or spec.precision not in of_precision:
        have = sorted({_graph(target)["model" if target.is_whole else "encoder"] for target in of_precision.values()})
        raise UserError(
            f"--target {spec}: a bundle is enough for rtx and tensorrt engines in a precision whose graph it has "
            f"({listed(have) or 'none'}); export the checkpoint for this one."
        )
    require_possible(spec)
    return of_precision[spec.precision]


def _engine(folder: Path, spec: TargetSpec, like: Target, profile: Profile, report: Report) -> Target:
    """Build one target's engine from the graph of another; what is known of that graph holds for it too."""
    report(Progress(f"{spec}: building"))
    start = time.perf_counter()
    gpu = write_gpu_files(folder, _graph(like), spec, profile, report, like.polynomial)
    return Target(
        backend=spec.backend.name,
        precision=spec.precision,
        files=gpu.files,
        built_with={"onnx": onnx.__version__, **gpu.built_with},
        build_s=round(time.perf_counter() - start, 2),
        notes=like.notes,
        **gpu.fields,
    )


def _write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return name


def _graph(target: Target) -> dict[str, str]:
    """The files of a target's graph by role: of the whole model, where its head is separable, or of the encoder with
    the head's constants."""
    built = ("engine", "cubin.", "resize.")
    return {role: name for role, name in target.files.items() if not role.startswith(built)}
