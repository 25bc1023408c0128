"""YAML as a configuration may be: bounded, and only text, numbers, true/false, null, lists and mappings in it."""

from pathlib import Path
from typing import Any

import yaml

from sdpl.errors import UserError

MAX_BYTES = 4 << 20
MAX_NODES = 200_000  # with every alias written out
MAX_DEPTH = 20
TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "merge")


class NotPlainError(ValueError):
    """What is not plain in a YAML text, in words."""


def read_plain_yaml(path: Path) -> Any:
    """The values of a YAML file. Raises UserError naming what is wrong."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is a device or a pipe, not a configuration file.")
        with open(path, "rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the configuration file in it.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if len(text) > MAX_BYTES:
        raise UserError(f"{path}: has more than {MAX_BYTES >> 20} MB, which no configuration has.")
    try:
        return parse_plain_yaml(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    except NotPlainError as error:
        raise UserError(f"{path}: is not YAML: {error}.") from None


def parse_plain_yaml(text: str) -> Any:
    """The values of a YAML text. Raises NotPlainError."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _size(node, {}, ())
        return yaml.safe_load(text)
    except NotPlainError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
        raise NotPlainError(str(error)) from None


def _size(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node makes, once its aliases are written out. Raises NotPlainError."""
    if id(node) in above:
        raise NotPlainError(f"a value contains itself{_place(node)}")
    if len(above) >= MAX_DEPTH:
        raise NotPlainError(f"values lie more than {MAX_DEPTH} deep{_place(node)}")
    if id(node) in sizes:
        return sizes[id(node)]
    kind = node.tag.rpartition(":")[2]
    if not node.tag.startswith("tag:yaml.org,2002:") or kind not in TAGS:
        fix = ": put it in quotes" if kind == "timestamp" else ""
        raise NotPlainError(f"a value of type {kind!r} is not plain text or a number{_place(node)}{fix}")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _require_keys(node)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_size(child, sizes, (*above, id(node))) for child in children)
    if sizes[id(node)] > MAX_NODES:
        raise NotPlainError(f"its aliases stand for more than {MAX_NODES:,} values{_place(node)}")
    return sizes[id(node)]


def _require_keys(node: yaml.MappingNode) -> None:
    """Keys are text, each once."""
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            what = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise NotPlainError(f"the key {what} is not text{_place(key)}: put it in quotes")
        if key.value in seen:
            raise NotPlainError(f"the key {key.value!r} appears twice{_place(key)}")
        seen.add(key.value)


def _place(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1}, column {node.start_mark.column + 1})"
