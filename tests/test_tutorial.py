"""docs/tutorial.md, as its notebook runs it: on real photos where they are at hand, with a tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient

import sdpl as package
from configs import BACKBONE, MODEL
from sdpl.data.formats import read_labels, write_labels
from sdpl.data.images import LabelledImages

ROOT = Path(package.__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "coco128" / "annotations" / "instances_train2017.json"
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "tutorial.ipynb"
WRITE = "%%writefile config.yaml\n"


@pytest.fixture
def photos(scenes, tmp_path, monkeypatch):
    """A working folder with photos/ and labels.csv: some of COCO's photos, or else generated scenes."""
    data = read_labels(PHOTOS if PHOTOS.exists() else scenes / "annotations" / "instances_train.json")
    data = data.subset(range(24))
    chosen = np.argsort(-(data.labels > 0).sum(axis=0), kind="stable")[:3]
    (tmp_path / "photos").mkdir()
    copies = [Path(shutil.copy(path, tmp_path / "photos" / path.name)) for path in data.images]
    copies[0] = copies[0].rename(tmp_path / "photos" / "a.jpg")
    known = np.random.RandomState(0).random_sample((24, 3)) < 0.7
    labels = (data.labels[:, chosen] * known).astype(np.int8)
    monkeypatch.chdir(tmp_path)
    names = tuple(data.categories[c] for c in chosen)
    write_labels(LabelledImages(tuple(copies), labels, names), Path("labels.csv"))
    return tmp_path


def tiny(config: str) -> str:
    """The tutorial's configuration with a tiny random model in place of CLIP, and two epochs."""
    values = yaml.safe_load(config)
    values["model"] = {**values["model"], **MODEL}
    values["train"] = {**values["train"], "epochs": 2, "batch_size": 8, "device": "cpu"}
    return yaml.safe_dump(values)


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(photos, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (config,) = (cell for cell in code if cell.source.startswith(WRITE))
    config.source = WRITE + tiny(config.source.removeprefix(WRITE))
    Path("backbone.json").write_text(json.dumps(BACKBONE))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the machine looks as if it had no GPU, as in all tests
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(photos)}}
    ).execute()
    commands = [line for cell in code if cell.source.startswith("%%bash") for line in cell.source.splitlines()[1:]]
    assert len(commands) >= 8
    assert all(command.startswith("sdpl ") for command in commands)
    assert Path("report.html").exists()
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    (said,) = code[-1].outputs
    assert len(json.loads(Path("a.json").read_text())["scores"]) == 3
    assert said.text.startswith("(")


def test_the_notebook_is_the_page(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "notebook.py", tmp_path / "made.ipynb"], check=True)
    assert (tmp_path / "made.ipynb").read_text() == NOTEBOOK.read_text(), "docs/tutorial.md has changed: make notebook"
    blocks = re.findall(r"^```\w+$", PAGE.read_text(), flags=re.M)
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert sum(cell.cell_type == "code" for cell in cells) == len(blocks) >= 8
