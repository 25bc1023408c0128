"""What a bundle can be made for and run on: one table of backends, one of precisions, and the targets they make.

A target's name is a kind, where the engine is bound to it early a compute capability, and a precision: `cpu:int8`,
`rtx:sm86:fp16`. Export, runtime, bundle and the kernels' compiler all read these tables.
"""

import importlib.util
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sdpl.errors import UserError, nearest
from sdpl.install import install_line

_silencing = threading.Lock()


@dataclass(frozen=True)
class Backend:
    """One library that runs targets."""

    name: str  # in manifests and of --backend
    kind: str  # the first part of its targets' names
    package: str  # the module it is imported as
    floor: str  # the least version that works
    extra: str  # of pyproject.toml, that installs it
    precisions: tuple[str, ...]  # the first is the one that is exported by default
    needs_gpu: bool = False
    builds_engines: bool = False  # files that belong to one version of the package and one compute capability
    capabilities: tuple[str, ...] = ()  # for which engines are built ahead of time, on any machine
    narrows: tuple[str, ...] = ()  # precisions that the library makes itself, of the float32 graph

    @property
    def install(self) -> str:
        """How to get it. Two packages of ONNX Runtime would write over each other's files."""
        first = "pip uninstall onnxruntime, then " if self.name == "onnxruntime-cuda" else ""
        return first + install_line(self.extra)

    def load(self) -> Any:
        """Its package, imported. Raises what the import raises.

        OpenVINO's import sends usage data, from a forked copy of this process that a thread waits for, and writes into
        the user's home, unless `openvino_telemetry` cannot be imported: then it uses its own stub.
        """
        if self.package != "openvino":
            return importlib.import_module(self.package)
        with _silencing:
            silenced = "openvino_telemetry" not in sys.modules
            if silenced:
                sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's mark of what is not there
            try:
                return importlib.import_module(self.package)
            finally:
                if silenced:
                    sys.modules.pop("openvino_telemetry", None)


BACKENDS = {  # the fastest first, as a guess: `sdpl.runtime.timings` knows what was measured
    backend.name: backend
    for backend in (
        Backend(
            name="tensorrt",
            kind="tensorrt",
            package="tensorrt",
            floor="10.12",
            extra="tensorrt",
            precisions=("fp16", "fp32", "bf16", "int8"),
            needs_gpu=True,
            builds_engines=True,
        ),
        Backend(
            name="tensorrt-rtx",
            kind="rtx",
            package="tensorrt_rtx",
            floor="1.7",
            extra="rtx",
            precisions=("fp16", "fp32", "bf16", "int8"),
            needs_gpu=True,
            builds_engines=True,
            capabilities=("86", "80", "89", "120"),
        ),
        Backend(
            name="onnxruntime-cuda",
            kind="cuda",
            package="onnxruntime",
            floor="1.22",
            extra="gpu",
            precisions=("fp16", "fp32"),
            needs_gpu=True,
        ),
        Backend(
            name="openvino",
            kind="openvino",
            package="openvino",
            floor="2025.0",
            extra="openvino",
            precisions=("fp32", "bf16", "int8"),
            narrows=("bf16",),
        ),
        Backend(
            name="onnxruntime-cpu",
            kind="cpu",
            package="onnxruntime",
            floor="1.22",
            extra="runtime",
            precisions=("fp32", "int8"),
        ),
    )
}
KINDS = {backend.kind: backend for backend in BACKENDS.values()}


@dataclass(frozen=True)
class Precision:
    """What a precision means: the type that an encoder of it writes, and so the kernel's; how far its scores may be
    from PyTorch's, and why."""

    kernel_dtype: str
    score: float  # largest difference of a probability in 0..1
    mAP_drop: float  # noqa: N815, the field writes it so; largest loss of mAP, in points
    cosine: float  # least between an embedding and PyTorch's; 1 - cosine is half the square of the relative error
    reason: str


PRECISIONS = {  # the fastest first, within a backend; the same guess
    "int8": Precision(
        kernel_dtype="float32",
        score=0.15,
        mAP_drop=0.5,
        cosine=0.9,
        reason="a probability near its threshold moves with every quantized layer; what counts is the ranking, "
        "which --eval measures as mAP",
    ),
    "fp16": Precision(
        kernel_dtype="float16",
        score=0.02,
        mAP_drop=0.1,
        cosine=0.9999,
        reason="each of some hundred layers rounds to 11 bits: a cosine may move by a few thousandths, and 1/tau = 10 "
        "at slope 1/4 makes 2.5 times that of a probability",
    ),
    "bf16": Precision(
        kernel_dtype="bfloat16",
        score=0.1,
        mAP_drop=0.5,
        cosine=0.99,
        reason="as float16 with 8 bits: eight times the rounding error",
    ),
    "fp32": Precision(
        kernel_dtype="float32",
        score=1e-4,
        mAP_drop=0.1,
        cosine=0.999999,
        reason="a float32 sum over a convolutional trunk differs by about 1e-5 relative when its order changes; "
        "1/tau multiplies that before the sigmoid, whose slope is at most 1/4",
    ),
}


def allowed_precisions(lowest: str) -> tuple[str, ...]:
    """The precisions that are at least as exact as this one. Raises UserError for a name that is not known."""
    if lowest not in PRECISIONS:
        raise UserError(f"precision {lowest!r}: {nearest(lowest, PRECISIONS)}")
    return tuple(name for name, precision in PRECISIONS.items() if precision.score <= PRECISIONS[lowest].score)


def most_exact(names: Iterable[str]) -> str:
    """The most exact of some precisions."""
    return min(names, key=lambda name: PRECISIONS[name].score)


@dataclass(frozen=True)
class TargetSpec:
    """One way to run the model. capability: the GPU's compute capability, where the engine is bound to it early."""

    kind: str
    precision: str
    capability: str | None = None

    @property
    def backend(self) -> Backend:
        """What is known of its engine."""
        return KINDS[self.kind]

    @property
    def graph(self) -> str:
        """The precision of the ONNX graph that it is made from."""
        return "fp32" if self.precision in self.backend.narrows else self.precision

    def __str__(self) -> str:
        return ":".join([self.kind, *([f"sm{self.capability}"] if self.capability else []), self.precision])


TARGETS = {
    str(spec): spec
    for backend in BACKENDS.values()
    for capability in backend.capabilities or (None,)
    for precision in backend.precisions
    for spec in (TargetSpec(backend.kind, precision, capability),)
}


def parse_targets(names: tuple[str, ...]) -> tuple[TargetSpec, ...]:
    """The targets of these names, in order, each once; with no name, the defaults of this machine.

    Raises UserError for a name that is not known, with the nearest that is.
    """
    for name in names:
        if name not in TARGETS:
            raise UserError(
                f"--target {name!r}: {_fitting(name) or nearest(name, TARGETS)} (a target is a kind, for rtx "
                "a compute capability, and a precision, such as rtx:sm86:fp16)"
            )
    return tuple(TARGETS[name] for name in dict.fromkeys(names)) or default_targets()


# Compute capabilities of GPUs that people name; from NVIDIA's list
GPUS = {
    "t4": "75", "a100": "80", "a30": "80", "3060": "86", "3070": "86", "3080": "86", "3090": "86", "a10": "86",
    "a40": "86", "a6000": "86", "4070": "89", "4080": "89", "4090": "89", "l4": "89", "l40": "89", "h100": "90",
    "h200": "90", "b200": "100", "5080": "120", "5090": "120",
}  # fmt: skip


# What others call the kinds of targets; beside these, the names of their backends
ALIASES = {"trt": "tensorrt", "ort": "cuda", **{backend.name: backend.kind for backend in BACKENDS.values()}}


def _fitting(name: str) -> str | None:
    """What to take for a kind without a precision, and for a GPU, by compute capability or by name, that `rtx:` has no
    target for; None for other names."""
    parts = name.lower().removesuffix(":").split(":")
    kind, model = ALIASES.get(parts[0], parts[0]), _model(parts[0])
    if len(parts) == 1 and model not in GPUS:
        if kind in ("rtx", "gpu"):
            return "for RTX 30 take rtx:sm86:fp16, RTX 40 rtx:sm89:fp16, RTX 50 rtx:sm120:fp16, for others cuda:fp16"
        return f"did you mean '{kind}:{KINDS[kind].precisions[0]}'?" if kind in KINDS else None
    if model in GPUS:
        parts.insert(0, "rtx")
    elif kind != "rtx" or len(parts) < 2:
        return None
    model = _model(parts[1])
    capability = GPUS.get(model) or parts[1].removeprefix("sm")
    if not capability.isdigit() or len(capability) < 2:
        return None
    if int(capability) < 80:
        return f"compute capability {capability} is too old for sdpl's kernels, which need 80: take cpu:fp32 there"
    precision = parts[2] if len(parts) > 2 and parts[2] in KINDS["rtx"].precisions else "fp16"
    if capability in KINDS["rtx"].capabilities:
        right = f"rtx:sm{capability}:{precision}"
        return f"this GPU is {right}" if model in GPUS else (None if len(parts) > 2 else f"did you mean {right!r}?")
    other = precision if precision in KINDS["cuda"].precisions else "fp16"
    return (
        f"TensorRT-RTX builds no engines ahead of time for compute capability {capability}, and those of another do "
        f"not run there: take tensorrt:{precision}, built on that GPU, or cuda:{other}"
    )


def _model(name: str) -> str:
    """A GPU's name as `GPUS` has it."""
    for word in ("nvidia", "geforce", "rtx", "-", "_", " "):
        name = name.replace(word, "")
    return name


def default_targets() -> tuple[TargetSpec, ...]:
    """`cpu:fp32`, and the engine for an RTX 3090 where TensorRT-RTX is installed to build it."""
    rtx = (TargetSpec("rtx", "fp16", "86"),) if importlib.util.find_spec(KINDS["rtx"].package) else ()
    return (TargetSpec("cpu", "fp32"), *rtx)


def default_engine() -> str | None:
    """The GPU's engine among `default_targets`, which such a bundle runs on where it can."""
    return next((str(spec) for spec in default_targets() if spec.backend.needs_gpu), None)


def rebuild_command(bundle: object, target: str, batch: object | None, capability: str | None) -> str:
    """The command that builds an engine of a bundle again. batch: its profile if that is not the default.

    capability: of the GPU that is to run it, where it is known.
    """
    parts = target.split(":")
    if KINDS[parts[0]].capabilities and capability is not None:
        parts[1] = f"sm{capability}"
    return f"sdpl-export {bundle} --target {':'.join(parts)}" + (f" --batch {batch}" if batch else "")
