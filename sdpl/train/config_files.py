"""Configurations in YAML files: paths made absolute, `--set` applied, then checked as `sdpl.train.config` says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpl.errors import UserError
from sdpl.text import path_problem
from sdpl.train.config import Config, SweepConfig, check_config, check_sweep
from sdpl.train.plain_yaml import NotPlainError, parse_plain_yaml, read_plain_yaml


def read_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file. Paths in it are relative to the file's folder.

    settings: "key=value" with a dotted key, such as "train.lr=0.01", in place of what the file has; the value is YAML,
    its paths are relative to the working folder. Raises UserError naming the first wrong key or value.
    """
    values = read_values(path)
    for setting in settings:
        _override(values, setting)
    return check_config(values, str(path))


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a training configuration, unchecked, with absolute paths."""
    return _absolute(_read_yaml(path, "data.train.annotations"), path.resolve().parent)


def read_sweep(path: Path) -> SweepConfig:
    """The sweep of a YAML file. Paths in it are relative to the file's folder.

    Raises UserError naming the first wrong key or value.
    """
    values, folder = _read_yaml(path, "base, test, methods and proportions"), path.resolve().parent
    values |= {"base": _join(folder, values.get("base"))} if "base" in values else {}
    if isinstance(values.get("test"), dict):
        values["test"] = _absolute_split(values["test"], folder)
    return check_sweep(values, str(path))


def _read_yaml(path: Path, needed: str) -> dict[str, Any]:
    values = read_plain_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a mapping; it needs at least {needed}.")
    return values


def _override(values: dict[str, Any], setting: str) -> None:
    """Put a "key=value" in its place. Raises UserError when it is none, or the key leads through a plain value."""
    key, equals, text = setting.partition("=")
    try:
        value = parse_plain_yaml(text)
    except NotPlainError:
        raise UserError(f"--set {setting!r}: its value is not YAML; quote it for the shell.") from None
    *sections, name = key.strip().split(".")
    if not equals or not sections:
        raise UserError(f"--set {setting!r}: expected SECTION.KEY=VALUE, such as train.lr=0.01.")
    here: dict[str, Any] = {}
    place = here
    for section in sections:
        place[section] = {}
        place = place[section]
    place[name] = value
    _merge(values, _absolute(here, Path.cwd()), setting)


def _merge(values: dict[str, Any], changes: dict[str, Any], setting: str) -> None:
    for key, change in changes.items():
        if not isinstance(change, dict):
            values[key] = change
            continue
        if values.get(key) is None:
            values[key] = {}
        if not isinstance(values[key], dict):
            raise UserError(f"--set {setting!r}: {key} has no keys of its own.")
        _merge(values[key], change, setting)


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same values with every path made absolute, so that a run does not depend on the working folder."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    data, model = values.get("data"), values.get("model")
    if isinstance(data, dict) and "cache" in data:
        data["cache"] = _join(folder, data["cache"])
    for split in ("train", "val"):
        if isinstance(data, dict) and isinstance(data.get(split), dict):
            data[split] = _absolute_split(data[split], folder)
    if isinstance(model, dict):
        for key in ("backbone_config", "weights", "word_vectors"):
            text = model.get(key)
            if isinstance(text, str) and not path_problem(text) and (folder / text).is_file():
                model[key] = _join(folder, model[key])
    return values


def _absolute_split(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {key: value if key == "format" else _join(folder, value) for key, value in values.items()}


def _join(folder: Path, value: Any) -> Any:
    return str(folder / value) if isinstance(value, str) else value
