"""The Open Inference Protocol (KServe v2) without its transports: what a request asks for, what an answer holds.

HTTP and gRPC both fill a `TensorSpec` for each input and output they were sent; everything that can be wrong with them
is found here, with one line for the caller.
"""

import base64
import binascii
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdpl.errors import listed, nearest
from sdpl.server.lease import Lease, ModelInfo
from sdpl.server.refusal import RefusalError

OUTPUTS = ("scores", "attention", "labels")
LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor


@dataclass(frozen=True)
class TensorSpec:
    """One input or output, as a transport found it. data: its values where they came with it; binary_size: how many
    bytes of it follow the JSON; binary: whether an output is wanted as bytes."""

    name: str
    datatype: str = ""
    shape: tuple[int, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    binary_size: int | None = None
    binary: bool = False


@dataclass(frozen=True)
class Ask:
    """A checked inference request. classification: how many categories of `scores` as text, 0 for the numbers."""

    id: str
    encoded: bool  # images are files (`jpeg`), not pixels (`image`)
    rows: int
    source: TensorSpec
    outputs: tuple[TensorSpec, ...]
    threshold: float | None
    top_k: int | None
    timeout_s: float | None

    @property
    def attention(self) -> bool:
        return any(output.name == "attention" for output in self.outputs)


def check(
    info: ModelInfo, id: str, parameters: dict[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Ask:
    """What a request asks for. Raises RefusalError naming the first thing that is wrong."""
    if len(inputs) != 1:
        raise RefusalError("invalid", f"expected one input, 'image' or 'jpeg', got {len(inputs)}.")
    source = inputs[0]
    if source.name not in ("image", "jpeg"):
        raise RefusalError("invalid", f"input {source.name[:100]!r}: {nearest(source.name[:100], ['image', 'jpeg'])}")
    encoded = source.name == "jpeg"
    side = info.geometry.image_size
    shape = source.shape
    if encoded:
        wrong = source.datatype != "BYTES" or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))
        expected = "BYTES [B]"
    else:
        wrong = source.datatype != "UINT8" or len(shape) != 4 or shape[1:] != (side, side, 3)
        expected = f"UINT8 [B,{side},{side},3]"
    if wrong or shape[0] < 1:
        raise RefusalError(
            "invalid", f"input {source.name!r}: expected {expected}, got {source.datatype} {list(shape)}."
        )
    names = [output.name for output in outputs]
    for output in outputs:
        if output.name not in OUTPUTS:
            raise RefusalError("invalid", f"output {output.name[:100]!r}: {nearest(output.name[:100], OUTPUTS)}")
        whole(output.parameters, "classification", 0, 1 << 31)
    if len(set(names)) < len(names):
        raise RefusalError("invalid", f"outputs {names}: each may be asked for once.")
    timeout_us = whole(parameters, "timeout", 0, 1 << 62)
    return Ask(
        id=id,
        encoded=encoded,
        rows=shape[0],
        source=source,
        outputs=tuple(outputs) or (TensorSpec("scores", binary=bool(parameters.get("binary_data_output"))),),
        threshold=_number(parameters, "threshold", 0.0, 1.0),
        top_k=whole(parameters, "top_k", 1, len(info.categories)),
        timeout_s=timeout_us / 1e6 if timeout_us else None,  # 0 means none, as in Triton
    )


def fill(lease: Lease, data: Any) -> None:
    """Copy numbers, an array or lists nested or flat, into a lease's images. Raises RefusalError."""
    try:
        array = np.array(data)
    except ValueError:
        raise RefusalError("invalid", "input 'image': its lists differ in length.") from None
    images = lease.images
    if array.size != images.size or array.dtype.kind not in "iu":
        raise RefusalError("invalid", f"input 'image': expected {images.size} whole numbers, got {array.size} values.")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise RefusalError("invalid", "input 'image': values must lie in 0..255.")
    images[...] = array.reshape(images.shape)


def encoded_images(source: TensorSpec, rows: int, raw: bytes | bytearray | memoryview | None) -> list[bytes]:
    """The files of a BYTES tensor: from raw bytes, from base64 text, or as they are."""
    if raw is not None:
        files = list(_elements(raw))
    elif isinstance(source.data, list) and all(isinstance(each, bytes) for each in source.data):
        files = source.data
    else:
        files = list(_from_base64(source.data))
    if len(files) != rows:
        raise RefusalError("invalid", f"input 'jpeg': its shape says {rows} images, its data holds {len(files)}.")
    return files


def results(ask: Ask, lease: Lease) -> list[tuple[TensorSpec, str, np.ndarray]]:
    """Each output that was asked for with its datatype and its values: float32, or object arrays of bytes."""
    info, scores = lease.hold.info, lease.scores
    found = []
    for output in ask.outputs:
        count = output.parameters.get("classification", 0)
        if output.name == "attention":
            found.append((output, "FP32", lease.attention))
        elif output.name == "labels":
            found.append((output, "BYTES", _labels(info, scores, ask)))
        elif count:
            rows = [[(c, s) for c, s in ranked(row)[:count]] for row in scores]
            found.append((output, "BYTES", _texts(info, rows)))
        else:
            found.append((output, "FP32", scores))
    return found


def ranked(scores: np.ndarray) -> list[tuple[int, float]]:
    """Categories by number with their scores [C], best first."""
    return [(int(c), float(scores[c])) for c in np.argsort(-scores, kind="stable")]


def above(info: ModelInfo, scores: np.ndarray, threshold: float | None, top_k: int | None) -> list[tuple[int, float]]:
    """The categories of one image [C] that reach their threshold, best first, at most `top_k`."""
    limits = info.thresholds if threshold is None else np.full(len(scores), threshold)
    return [(c, score) for c, score in ranked(scores)[:top_k] if score >= limits[c]]


def to_bytes(values: np.ndarray) -> bytes:
    """A tensor's bytes; elements of BYTES each have their length before them."""
    if values.dtype != object:
        return values.tobytes()
    return b"".join(LENGTH.pack(len(text)) + text for text in values.ravel())


def _labels(info: ModelInfo, scores: np.ndarray, ask: Ask) -> np.ndarray:
    return _texts(info, [above(info, row, ask.threshold, ask.top_k) for row in scores])


def _texts(info: ModelInfo, rows: list[list[tuple[int, float]]]) -> np.ndarray:
    """ "score:index:name" as bytes [B,K], K of the row with most; shorter rows end in empty texts."""
    width = max(map(len, rows), default=0)
    texts = np.full((len(rows), width), b"", dtype=object)
    for i, row in enumerate(rows):
        for k, (c, score) in enumerate(row):
            texts[i, k] = f"{score:.6f}:{c}:{info.categories[c]}".encode()
    return texts


def _elements(raw: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """The elements of a BYTES tensor."""
    at, view = 0, memoryview(raw)
    while at < len(view):
        if len(view) - at < LENGTH.size:
            raise RefusalError("invalid", "input 'jpeg': its bytes end inside a length.")
        (size,) = LENGTH.unpack_from(view, at)
        at += LENGTH.size
        if size > len(view) - at:
            raise RefusalError("invalid", f"input 'jpeg': an element says {size} bytes, {len(view) - at} are left.")
        yield bytes(view[at : at + size])
        at += size


def _from_base64(data: Any) -> Iterator[bytes]:
    if not isinstance(data, list):
        raise RefusalError("invalid", "input 'jpeg': needs 'data', a list of base64 texts, or binary data.")
    flat: Iterable[Any] = [e for each in data for e in (each if isinstance(each, list) else [each])]
    for text in flat:
        try:
            yield base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise RefusalError("invalid", "input 'jpeg': an element is no base64 text.") from None


def whole(parameters: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """A parameter that is a whole number in a range; None without it. Raises RefusalError."""
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise RefusalError(
            "invalid", f"parameter {name!r}: expected a whole number from {low} to {high}, got {_brief(value)}."
        )
    return value


def _number(parameters: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, str):  # gRPC clients older than the double parameter
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RefusalError("invalid", f"parameter {name!r}: expected a number from {low:g} to {high:g}.")
    return float(value)


def _brief(value: Any) -> str:
    return listed([repr(value)[:80]])
