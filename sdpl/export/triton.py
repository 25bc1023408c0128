"""A bundle as a model repository of NVIDIA Triton.

Three models: NAME runs the bundle with sdpl itself in Triton's Python backend, which is the only way to serve its
TensorRT-RTX engines there; NAME_onnx is the whole model as one ONNX graph for Triton's onnxruntime backend; NAME_plan
is that graph (separable where it was exported with `--head separable`) as one TensorRT engine in float32, made only
where TensorRT and its GPU are. Triton runs the latter two without sdpl: the bundle's proof is not about them.
"""

import json
import shutil
from pathlib import Path

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.export.tensorrt import build_engine, require_buildable
from sdpl.files import replace_folder
from sdpl.manifest import CACHE, Manifest, Profile
from sdpl.progress import Progress, Report, silent
from sdpl.runtime.cpu import BATCH_SIZES
from sdpl.runtime.two_stage import batch_sizes
from sdpl.targets import TARGETS

IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads, which Triton 24.10 brings
OPSET = 21  # likewise
PLAN = TARGETS["tensorrt:fp32"]
CONFIG = "config.pbtxt"
LABELS = "labels.txt"
DELAY_US = 0  # of dynamic batching: whatever waits when the engine is free


def write_triton(path: Path, folder: Path, report: Report = silent) -> list[Path]:
    """Write the models of the bundle at `path` into a repository; the folders of those that were written.

    Models of the same names that were written before are replaced; nothing else in `folder` is touched; `report` is
    told why there is no engine. Raises UserError when the bundle has no ONNX model, or the folder cannot be written.
    """
    bundle = Bundle.open(path)
    name = path.resolve().name.removesuffix(".sdpl")
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write_python(bundle, folder / name), _write_onnx(bundle, folder / f"{name}_onnx")]
    try:
        require_buildable(PLAN)
    except UserError as error:
        report(Progress(f"skipped {name}_plan: {error}"))
        return written
    return [*written, _write_plan(bundle, folder / f"{name}_plan", report)]


def _write_python(bundle: Bundle, folder: Path) -> Path:
    with replace_folder(folder, _is_ours) as new:
        inside = new / "1" / "model.sdpl"
        shutil.copytree(bundle.path, inside, ignore=shutil.ignore_patterns(CACHE))
        shutil.copyfile(Path(__file__).parent / "triton_model.py", new / "1" / "model.py")
        sizes = sorted({size for t in bundle.manifest.targets.values() if t.profile for size in batch_sizes(t.profile)})
        _write_beside(new, bundle.manifest, folder.name, "python", sizes or list(BATCH_SIZES), with_files=True)
    return folder


def _write_onnx(bundle: Bundle, folder: Path) -> Path:
    import onnx
    import onnx.inliner

    model = onnx.inliner.inline_local_functions(onnx.load(_graph(bundle)))
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > OPSET:
        raise UserError(f"{bundle.path}: its graph has opset {opset}; Triton's ONNX Runtime reads up to {OPSET}.")
    model.ir_version = min(model.ir_version, IR_VERSION)
    with replace_folder(folder, _is_ours) as new:
        (new / "1").mkdir()
        onnx.save(model, new / "1" / "model.onnx")
        _write_beside(new, bundle.manifest, folder.name, "onnxruntime", list(BATCH_SIZES), with_files=False)
    return folder


def _write_plan(bundle: Bundle, folder: Path, report: Report) -> Path:
    profile = Profile(min=1, opt=8, max=BATCH_SIZES[-1])
    with replace_folder(folder, _is_ours) as new:
        (new / "1").mkdir()
        (new / "1" / "model.plan").write_bytes(build_engine(_graph(bundle), PLAN, profile, report).code)
        _write_beside(new, bundle.manifest, folder.name, "tensorrt", list(BATCH_SIZES), with_files=False)
    return folder


def _graph(bundle: Bundle) -> Path:
    """The whole model in float32. Raises UserError when the bundle has none."""
    targets = bundle.manifest.targets.values()
    graphs = [t.files["model"] for t in targets if "model" in t.files and t.precision == "fp32"]
    if not graphs:
        raise UserError(f"{bundle.path}: has no whole ONNX model for Triton; export it with --target cpu:fp32 too.")
    return bundle.file(graphs[0])


def _write_beside(
    folder: Path, manifest: Manifest, name: str, backend: str, sizes: list[int], with_files: bool
) -> None:
    """The configuration and the labels of a model."""
    (folder / LABELS).write_text("".join(f"{category}\n" for category in manifest.categories), encoding="utf-8")
    (folder / CONFIG).write_text(_config(manifest, name, backend, sizes, with_files), encoding="utf-8")


def _config(manifest: Manifest, name: str, backend: str, sizes: list[int], with_files: bool) -> str:
    """config.pbtxt. with_files: images may also come encoded, as `jpeg`."""
    side, count = manifest.preprocessing.image_size, len(manifest.categories)
    optional = " optional: true" if with_files else ""
    inputs = [f'{{ name: "image" data_type: TYPE_UINT8 dims: [{side}, {side}, 3]{optional} }}']
    if with_files:
        inputs.append('{ name: "jpeg" data_type: TYPE_STRING dims: [1] optional: true }')
    outputs = [f'{{ name: "scores" data_type: TYPE_FP32 dims: [{count}] label_filename: "{LABELS}" }}']
    if backend != "python":
        cells = manifest.map_size[0] * manifest.map_size[1]
        outputs.append(f'{{ name: "attention" data_type: TYPE_FP32 dims: [{count}, {cells}] }}')
        if manifest.embedding_size is not None:  # TensorRT's backend wants to know every output
            outputs.append(f'{{ name: "embedding" data_type: TYPE_FP32 dims: [{manifest.embedding_size}] }}')
    about = {
        "categories": json.dumps(manifest.categories),
        "thresholds": json.dumps(manifest.thresholds),
        "preprocessing": manifest.preprocessing.model_dump_json(),
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "sdpl_version": manifest.sdpl_version,
    }
    lines = [
        f"name: {_text(name)}",
        f'backend: "{backend}"',
        f"max_batch_size: {sizes[-1]}",
        f"input [{', '.join(inputs)}]",
        f"output [{', '.join(outputs)}]",
        f"dynamic_batching {{ preferred_batch_size: {sizes} max_queue_delay_microseconds: {DELAY_US} }}",
        "instance_group [{ count: 1 kind: KIND_AUTO }]",
        'model_warmup [{ name: "one image" batch_size: 1 inputs { key: "image" value: '
        f"{{ data_type: TYPE_UINT8 dims: [{side}, {side}, 3] random_data: true }} }} }}]",
        *(f"parameters {{ key: {_text(k)} value: {{ string_value: {_text(v)} }} }}" for k, v in about.items()),
    ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A string of the protobuf text format; JSON's escapes are among its own, once all is ASCII bytes."""
    return (
        '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in value.encode()) + '"'
    )


def _is_ours(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / LABELS).is_file()
