"""The files of a GPU target in a folder: kernel, engine; and an engine added to a bundle that is already there."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from safetensors.numpy import load_file

from sdpl.bundle import CACHE, HEAD, Bundle, Profile, Target, is_bundle, write_manifest
from sdpl.errors import UserError, listed
from sdpl.export.targets import BACKENDS, PACKAGES, TargetSpec
from sdpl.export.tensorrt import build_engine, require_buildable
from sdpl.export.verify import Limits, Prover, encoder_scorer
from sdpl.files import replace_folder
from sdpl.kernels.compile import CAPABILITIES, OF_PRECISION, cubin, require_nvrtc


@dataclass(frozen=True)
class GpuFiles:
    """Names of a GPU target's files by role, what built them, and the target's other fields."""

    files: dict[str, str]
    built_with: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


def require_possible(spec: TargetSpec) -> None:
    """Raise UserError with the mend when this machine cannot make a target's files."""
    if spec.kind != "cpu":
        require_nvrtc()
    require_buildable(spec)


def write_gpu_files(
    folder: Path, encoder: str, spec: TargetSpec, profile: Profile, report: Callable[[str], None]
) -> GpuFiles:
    """Write what a GPU target needs beside its encoder graph and the head's constants, both already in the folder."""
    files = {"encoder": encoder, "head": HEAD}
    engine = build_engine(folder / encoder, spec, profile, report) if spec.kind in PACKAGES else None
    capability = engine.compute_capability if engine else None
    dtype = OF_PRECISION[spec.precision]
    for each in [capability] if capability else CAPABILITIES:
        files[f"cubin.sm{each}"] = _write(folder, f"kernels/sm{each}.{dtype}.cubin", cubin(each, dtype))
    if engine is None:
        return GpuFiles(files, fields={"profile": profile})
    files["engine"] = _write(folder, f"targets/{str(spec).replace(':', '-')}/encoder.engine", engine.code)
    fields = {"profile": profile, "compute_capability": capability, "workspace_bytes": engine.workspace_bytes}
    return GpuFiles(files, engine.built_with, fields)


def add_engines(
    path: Path,
    specs: tuple[TargetSpec, ...],
    profile: Profile,
    limits: Limits,
    report: Callable[[str], None],
    run_here: Callable[[Path], None],
) -> dict[str, Target]:
    """Build engines from a bundle's own encoder graphs, for this machine or another, and prove them; no checkpoint and
    no PyTorch. The bundle is replaced when all is done; see `sdpl.export.build.export` for the arguments."""
    bundle = Bundle.open(path)
    for spec in specs:
        if spec.kind not in PACKAGES or f"encoder.{spec.precision}.onnx" not in bundle.manifest.files:
            have = [name for name in bundle.manifest.files if name.startswith("encoder.")]
            raise UserError(
                f"--target {spec}: a bundle is enough for rtx and tensorrt engines in a precision whose graph it has "
                f"({listed(have) or 'none'}); export the checkpoint for this one."
            )
        require_possible(spec)
    manifest = bundle.manifest
    images, expected = bundle.proof()
    prover = Prover(images, expected, limits)
    made = {}
    with replace_folder(path, is_bundle) as folder:
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)
        constants = load_file(folder / HEAD)
        for spec in specs:
            report(f"[bold]{spec}[/bold]")
            start, encoder = time.perf_counter(), f"encoder.{spec.precision}.onnx"
            gpu = write_gpu_files(folder, encoder, spec, profile, report)
            build_s = round(time.perf_counter() - start, 2)
            scorer = encoder_scorer(onnx.load(folder / encoder), constants, manifest.probability)
            made[str(spec)] = Target(
                backend=BACKENDS[spec.kind],
                precision=spec.precision,
                files=gpu.files,
                built_with={"onnx": onnx.__version__, **gpu.built_with},
                build_s=build_s,
                verification=prover.prove(scorer, str(spec), spec.precision, "graph"),
                **gpu.fields,
            )
        fields = {name: getattr(manifest, name) for name in type(manifest).model_fields}
        del fields["files"], fields["format_version"]
        write_manifest(folder, **fields | {"targets": manifest.targets | made})
        run_here(folder)
        if (path / CACHE).is_dir():
            shutil.copytree(path / CACHE, folder / CACHE, dirs_exist_ok=True)
    report(f"wrote {path}")
    return made


def _write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return name
