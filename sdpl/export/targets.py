"""What a bundle can be made for: names such as cpu:int8 and rtx:sm86:fp16."""

import importlib.util
from dataclasses import dataclass

from sdpl import tensorrt_packages
from sdpl.errors import UserError, nearest
from sdpl.tensorrt_packages import RTX_CAPABILITIES

PRECISIONS = {  # by kind of target; the first is the one meant when none is named
    "cpu": ("fp32", "int8"),
    "cuda": ("fp16", "fp32"),
    "rtx": ("fp16", "fp32", "bf16", "int8"),
    "tensorrt": ("fp16", "fp32", "bf16", "int8"),
}
BACKENDS = {"cpu": "onnxruntime-cpu", "cuda": "onnxruntime-cuda", "rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
PACKAGES = {kind: tensorrt_packages.PACKAGES[BACKENDS[kind]] for kind in ("rtx", "tensorrt")}  # builders of engines


@dataclass(frozen=True)
class TargetSpec:
    """One way to run the model. capability: the GPU's compute capability, where the engine is bound to it early."""

    kind: str
    precision: str
    capability: str | None = None

    def __str__(self) -> str:
        return ":".join([self.kind, *([f"sm{self.capability}"] if self.capability else []), self.precision])


KNOWN = tuple(
    TargetSpec(kind, precision, capability)
    for kind, precisions in PRECISIONS.items()
    for capability in (RTX_CAPABILITIES if kind == "rtx" else (None,))
    for precision in precisions
)


def parse_targets(names: tuple[str, ...]) -> tuple[TargetSpec, ...]:
    """The targets of these names, in order, each once; with no name, the defaults of this machine.

    Raises UserError for a name that is not known, with the nearest that is.
    """
    by_name = {str(spec): spec for spec in KNOWN}
    for name in names:
        if name not in by_name:
            raise UserError(
                f"--target {name!r}: {nearest(name, by_name)} (a target is a kind, for rtx a compute capability, and a "
                "precision, such as rtx:sm86:fp16)"
            )
    return tuple(by_name[name] for name in dict.fromkeys(names)) or default_targets()


def default_targets() -> tuple[TargetSpec, ...]:
    """`cpu:fp32`, and the engine for an RTX 3090 where TensorRT-RTX is installed to build it."""
    rtx = (TargetSpec("rtx", "fp16", "86"),) if importlib.util.find_spec(PACKAGES["rtx"]) else ()
    return (TargetSpec("cpu", "fp32"), *rtx)
