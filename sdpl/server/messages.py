"""The protocol's gRPC messages, made from `inference.binpb` in a pool of their own: other code in the same process may
bring the same names. And a request taken apart without copying its tensors."""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from sdpl.server.refusal import RefusalError

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"  # gRPC's own
RAW_INPUT_CONTENTS = 7  # its field in ModelInferRequest

_pool = descriptor_pool.DescriptorPool()
for _file in FileDescriptorSet.FromString((files(__package__) / "inference.binpb").read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """The class of a message of the protocol, such as "ModelInferRequest"."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def methods(service: str = SERVICE) -> dict[str, tuple[Any, Any]]:
    """A service's methods with the classes of their requests and responses."""
    get = message_factory.GetMessageClass
    found = _pool.FindServiceByName(service).methods
    return {method.name: (get(method.input_type), get(method.output_type)) for method in found}


def split(data: bytes) -> tuple[bytes, list[memoryview]]:
    """A serialized ModelInferRequest as a message without its raw tensors, and those, not copied.

    Raises RefusalError when it is cut short or malformed.
    """
    view, at, rest, raw = memoryview(data), 0, [], []
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(view, at)
            if size > len(view) - at:
                raise RefusalError("invalid", "the message is cut short.")
            if tag >> 3 == RAW_INPUT_CONTENTS:
                raw.append(view[at : at + size])
                at += size
                continue
            at += size
        elif kind == 0:
            _, at = _varint(view, at)
        else:
            at += {1: 8, 5: 4}.get(kind, len(view))
        rest.append(view[start:at])
    if at > len(view):
        raise RefusalError("invalid", "the message is malformed.")
    return b"".join(rest), raw


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise RefusalError("invalid", "the message is malformed.")
