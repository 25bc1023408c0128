"""The protocol's JSON form, which HTTP speaks: a request out of its document, the document of an answer."""

import json
from typing import Any

from sdpl.server.lease import Lease, ModelInfo
from sdpl.server.protocol import Ask, TensorSpec, check, results, to_bytes, whole
from sdpl.server.refusal import RefusalError


def parse_json(text: bytes | bytearray) -> dict[str, Any]:
    """An object. Raises RefusalError for anything else."""
    try:
        document = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise RefusalError("invalid", f"the body is no valid JSON ({error}).") from None
    if not isinstance(document, dict):
        raise RefusalError("invalid", "the body must be a JSON object.")
    return document


def from_json(info: ModelInfo, document: dict[str, Any]) -> Ask:
    """A request of the HTTP transport, its JSON part."""
    parameters = _object(document, "parameters")
    all_binary = bool(parameters.get("binary_data_output"))
    id = document.get("id", "")
    if not isinstance(id, str):
        raise RefusalError("invalid", "'id' must be text.")
    inputs = [_tensor(each, "inputs") for each in _list(document, "inputs")]
    outputs = [_tensor(each, "outputs", all_binary) for each in _list(document, "outputs")]
    return check(info, id, parameters, inputs, outputs)


def to_json(ask: Ask, lease: Lease) -> tuple[bytes, list[bytes]]:
    """The answer over HTTP: its JSON, and the bytes of outputs that are wanted so."""
    outputs, raw = [], []
    for spec, datatype, values in results(ask, lease):
        entry: dict[str, Any] = {"name": spec.name, "datatype": datatype, "shape": list(values.shape)}
        if spec.binary:
            data = to_bytes(values)
            entry["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        elif datatype == "BYTES":
            entry["data"] = [text.decode() for text in values.ravel()]
        else:
            entry["data"] = values.ravel().tolist()
        outputs.append(entry)
    info = lease.hold.info
    answer: dict[str, Any] = {"model_name": info.name, "model_version": info.version, "outputs": outputs}
    if ask.id:
        answer["id"] = ask.id
    return json.dumps(answer).encode(), raw


def _tensor(entry: Any, where: str, all_binary: bool = False) -> TensorSpec:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise RefusalError("invalid", f"'{where}': each entry must be an object with a name.")
    name, shape, datatype = entry["name"], entry.get("shape", []), entry.get("datatype", "")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape) or len(shape) > 8:
        raise RefusalError("invalid", f"{name!r}: its shape must be a list of whole numbers.")
    if not isinstance(datatype, str):
        raise RefusalError("invalid", f"{name!r}: its datatype must be text.")
    parameters = _object(entry, "parameters")
    if "shared_memory_region" in parameters:
        raise RefusalError("invalid", f"{name!r}: this server has no shared memory extension.")
    return TensorSpec(
        name=name,
        datatype=datatype,
        shape=tuple(shape),
        parameters=parameters,
        data=entry.get("data"),
        binary_size=whole(parameters, "binary_data_size", 0, 1 << 62),
        binary=bool(parameters.get("binary_data", all_binary)),
    )


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise RefusalError("invalid", f"{key!r} must be an object.")
    return value


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key, [])
    if not isinstance(value, list):
        raise RefusalError("invalid", f"{key!r} must be a list.")
    return value
