"""What an ONNX file takes and gives, and which other files it reads: from its bytes, without onnx.

ONNX is protobuf: fields of (number, wire type, content), nested. Only the fields named in `INSIDE` are entered; weights
are passed by their length. So a foreign graph can be judged before any engine, in native code, opens it.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_FIELDS = 5_000_000
MAX_DEPTH = 40
INSIDE = {  # message -> field number -> message in it, as far as tensors may lie in them
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL_DATA = 13  # of a tensor


class NotOnnxError(ValueError):
    """Why bytes are no ONNX graph that may be opened."""


@dataclass
class Interface:
    """Names of a graph's inputs and outputs, each with its shape; None for a dimension that is free."""

    inputs: dict[str, list[int | None]] = field(default_factory=dict)
    outputs: dict[str, list[int | None]] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)  # files that weights lie in, relative to the graph's folder


def read_interface(path: Path) -> Interface:
    """The interface of an ONNX file. Raises NotOnnxError when it is damaged."""
    if path.stat().st_size == 0:
        raise NotOnnxError("it is empty")
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(content).interface()


class _Reader:
    def __init__(self, content: mmap.mmap):
        self._content, self._left = content, MAX_FIELDS
        self._found = Interface()

    def interface(self) -> Interface:
        self._enter("model", 0, len(self._content), 0)
        if not self._found.inputs or not self._found.outputs:
            raise NotOnnxError("it has no inputs or no outputs")
        return self._found

    def _enter(self, message: str, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise NotOnnxError("it is nested too deep")
        inside = INSIDE.get(message, {})
        for number, kind, value, stop in self._fields(start, end):
            if message == "tensor" and (number, kind) == (EXTERNAL_DATA, BYTES):
                self._add_external(value, stop)
            if kind != BYTES or number not in inside:
                continue
            if inside[number] in ("input", "output"):
                if depth == 1:  # of the main graph
                    name, shape = self._value(value, stop)
                    (self._found.inputs if inside[number] == "input" else self._found.outputs)[name] = shape
            else:
                self._enter(inside[number], value, stop, depth + 1)

    def _add_external(self, start: int, end: int) -> None:
        """An entry of a tensor's external data: key (1) and value (2)."""
        entry = {n: self._text(value, stop) for n, kind, value, stop in self._fields(start, end) if kind == BYTES}
        if entry.get(1) == "location":
            self._found.external.add(entry.get(2, ""))

    def _text(self, start: int, end: int) -> str:
        return self._content[start : min(end, start + 1000)].decode("utf-8", "replace")

    def _value(self, start: int, end: int) -> tuple[str, list[int | None]]:
        """Name and shape of an input or output."""
        name, shape = "", []
        for number, kind, value, stop in self._fields(start, end):
            if number == 1 and kind == BYTES:
                name = self._text(value, stop)
            elif number == 2 and kind == BYTES:
                shape = self._shape(value, stop)
        return name, shape

    def _shape(self, start: int, end: int) -> list[int | None]:
        """TypeProto -> tensor_type (1) -> shape (2) -> dim (1) -> dim_value (1)."""
        place = [(start, end)]
        for number in (1, 2):
            parts = [part for a, b in place for part in self._fields(a, b)]
            place = [(v, stop) for n, kind, v, stop in parts if (n, kind) == (number, BYTES)]
        shape: list[int | None] = []
        for a, b in place:
            for number, kind, value, stop in self._fields(a, b):
                if (number, kind) == (1, BYTES):
                    sizes = [v for n, k, v, _ in self._fields(value, stop) if (n, k) == (1, VARINT)]
                    shape.append(sizes[0] if sizes else None)
        return shape

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and the value of a number or the start and end of bytes."""
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise NotOnnxError("it has too many parts")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, at
                continue
            if kind == BYTES:
                size, at = self._varint(at, end)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                raise NotOnnxError("it is no protobuf")
            if at + size > end:
                raise NotOnnxError("it is cut off")
            yield number, kind, at, at + size
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise NotOnnxError("it is cut off")
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise NotOnnxError("it is no protobuf")
