"""Damaged checkpoints, bundles, label files, configurations and command lines: one line of ours, or all is well."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import yaml
from click.testing import CliRunner
from pyarrow import parquet

from sdpl.bundle import Bundle
from sdpl.cli import main
from sdpl.data.formats import read_labels
from sdpl.errors import UserError
from sdpl.manifest import MANIFEST
from sdpl.runtime import Recognizer
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.config_files import read_config
from sdpl.train.contents import HASHES, hashes
from sdpl.train.distributed import Processes
from sdpl.train.resume import check_learner, check_state
from sdpl.train.step import Learner

from .hostile import changed
from .material import Material
from .mutate import mutated

Attack = Callable[[], Any]
TENSORS = (
    torch.zeros(0),
    torch.full((3, 3), float("nan")),
    torch.zeros(1).expand(100_000, 100_000),
    torch.zeros(2, 2, dtype=torch.complex64),
    torch.zeros(5, dtype=torch.int8),
    torch.eye(3).to_sparse(),
    torch.zeros(7, 11),
)


class Shared:
    """What all cases of a child read once."""

    def __init__(self, material: Material):
        torch.set_num_threads(1)
        self.material = material
        self.folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        self.content = torch.load(material.checkpoint, weights_only=True)
        self.small = {key: value for key, value in self.content.items() if key != "state"}
        self.checkpoint = material.checkpoint.read_bytes()
        self.config = yaml.safe_load(material.config.read_text())


def case(shared: Shared, random: np.random.Generator) -> Attack:
    return KINDS[int(random.integers(len(KINDS)))](shared, random)


def _checkpoint(shared: Shared, random: np.random.Generator) -> Attack:
    """Its content changed in structure, the hashes right half of the time."""
    content = changed(shared.small, random, TENSORS) if random.random() < 0.8 else dict(shared.small)
    state = dict(shared.content["state"])
    if random.random() < 0.3:
        state = changed(state, random, TENSORS)
    if isinstance(content, dict):
        content["state"] = state
        if random.random() < 0.8:
            content[HASHES] = hashes(content)
    path = shared.folder / "damaged.ckpt"
    torch.save(content, path)
    return lambda: _load(path)


def _checkpoint_bytes(shared: Shared, random: np.random.Generator) -> Attack:
    path = shared.folder / "damaged.ckpt"
    path.write_bytes(mutated(shared.checkpoint, [shared.checkpoint[:5000]], random))
    return lambda: _load(path)


def _load(path: Path) -> None:
    content = load_checkpoint(path)
    config, model = restore_model(content, str(path))
    check_state(content["resume"], str(path))
    learner = Learner(model, config, Processes())
    check_learner(content["resume"]["learner"], learner.state(), learner.parameters)
    learner.load_state(content["resume"]["learner"])
    model.scores(content["proof_images"][:1].numpy())


def _bundle(shared: Shared, random: np.random.Generator) -> Attack:
    """The manifest changed in structure, or a file changed and its hash made right."""
    path = shared.folder / "damaged.sdpl"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(shared.material.bundle, path)
    manifest = json.loads((path / MANIFEST).read_text())
    if random.random() < 0.6:
        manifest = changed(manifest, random)
        (path / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=random.random() < 0.5), errors="surrogatepass")
    else:
        name = sorted(manifest["files"])[int(random.integers(len(manifest["files"])))]
        content = mutated((path / name).read_bytes(), [b"\0" * 64], random)
        (path / name).write_bytes(content)
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (path / MANIFEST).write_text(json.dumps(manifest))
    return lambda: _open(path)


def _open(path: Path) -> None:
    bundle = Bundle.open(path)
    for name in bundle.manifest.files:
        bundle.file(name)
    images, _ = bundle.proof()
    with Recognizer.open(path, threads=1) as recognizer:
        recognizer.attention(images[:1])


def _labels(shared: Shared, random: np.random.Generator) -> Attack:
    """Bytes, or for formats that have one, the structure."""
    source = shared.material.labels[int(random.integers(len(shared.material.labels)))]
    path = shared.folder / source.name
    if random.random() < 0.5:
        path.write_bytes(mutated(source.read_bytes(), [b'{"image":1}', b',,\n"', b"\xff\xfe"], random))
    elif source.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(source.read_text()), random)))
    elif source.suffix == ".jsonl":
        rows = [json.loads(line) for line in source.read_text().splitlines()[:5]]
        rows = changed(rows, random)
        path.write_text("\n".join(json.dumps(row) for row in (rows if isinstance(rows, list) else [rows])))
    elif source.suffix == ".parquet":
        _write_parquet(path, parquet.read_table(source), random)
    else:
        cells = [line.split(",") for line in source.read_text().splitlines()[:5]]
        cells = changed(cells, random)
        lines = (",".join(map(str, row)) if isinstance(row, list) else str(row) for row in cells)
        path.write_text("\n".join(lines), errors="surrogateescape" if random.random() < 0.5 else "replace")
    return lambda: read_labels(path, shared.material.folder / "train", require_images=False)


def _write_parquet(path: Path, table: pyarrow.Table, random: np.random.Generator) -> None:
    values = [[1.5] * len(table), [b"x"] * len(table), [[1]] * len(table), [{"a": 1}] * len(table), [None] * len(table)]
    values += [
        [np.datetime64("2024-01-01")] * len(table),
        [True] * len(table),
        ["1"] * len(table),
        [["a"]] * len(table),
    ]
    column = int(random.integers(table.num_columns))
    array = pyarrow.array(values[int(random.integers(len(values)))])
    parquet.write_table(table.set_column(column, table.column_names[column], array), path)


def _config(shared: Shared, random: np.random.Generator) -> Attack:
    path = shared.folder / "damaged.yaml"
    if random.random() < 0.3:
        text = mutated(
            shared.material.config.read_bytes(), [b"&a [*a]", b"!!python/object:x", b"? - : |", b"<<: "], random
        )
        path.write_bytes(text)
    else:
        path.write_text(yaml.safe_dump(changed(shared.config, random), allow_unicode=True), errors="backslashreplace")
    return lambda: read_config(path)


def _command(shared: Shared, random: np.random.Generator) -> Attack:
    """A command line of words that may or may not fit together."""
    material = shared.material
    words = [
        "--help",
        "--json",
        "--batch",
        "0",
        "-1",
        "x",
        "--top",
        "3",
        "--threshold",
        "nan",
        "1e9",
        "--images",
        "--out",
    ]
    words += [
        "--format",
        "coco",
        "csv",
        "--seed",
        "--proportion",
        "0.5",
        "--force",
        "--backend",
        "auto",
        "cpu:fp32",
        "",
    ]
    words += [
        "\0",
        "a" * 300,
        "a" * 5000,
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        ".",
        "/",
        "\udcff",
        "[bold]",
        "--set",
    ]
    words += ["train.lr=.inf", "x=&a [*a]", "--resume", "--max-pixels", "999999999999", "--target", "rtx:sm86:fp16"]
    words += [str(material.checkpoint), str(material.bundle), str(material.annotations), str(material.config)]
    words += [str(material.folder / "train"), str(shared.folder / "new")]
    commands = [["eval"], ["predict"], ["info"], ["data", "check"], ["data", "mask"], ["verify"], ["train"], ["export"]]
    chosen = commands[int(random.integers(len(commands)))] + [
        words[i] for i in random.integers(len(words), size=int(random.integers(6)))
    ]
    return lambda: _run(chosen, shared.folder)


def _run(words: list[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work, contextlib.chdir(work):
        result = CliRunner().invoke(main, words)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code in (0, 1, 2), f"{words}: status {result.exit_code}: {result.stderr[-300:]}"
    assert all(len(line) <= 400 for line in errors), f"{words}: a line of {max(map(len, errors))} characters"
    if result.exit_code == 2:
        raise UserError("refused")


KINDS = (_checkpoint, _checkpoint_bytes, _bundle, *[_labels] * 4, *[_config] * 4, _command)
