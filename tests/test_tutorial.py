"""Every command of docs/tutorial.md, on real photos where they are at hand, with a tiny model in place of CLIP."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import sdpl as package
from configs import BACKBONE, MODEL
from sdpl.data.formats import read_labels, write_labels
from sdpl.data.images import LabelledImages

ROOT = Path(package.__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "coco128" / "annotations" / "instances_train2017.json"
TEXT = (ROOT / "docs" / "tutorial.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, flags=re.S)


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
    write_labels(LabelledImages(tuple(copies), labels, names), Path("photos/labels.csv"))
    rows = Path("photos/labels.csv").read_text().splitlines()
    Path("photos/labels.csv").unlink()
    Path("labels.csv").write_text("\n".join([rows[0], *(f"photos/{row}" for row in rows[1:])]))
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_tutorial(sdpl, photos):
    (config,) = blocks("yaml")
    values = yaml.safe_load(config)
    values["model"] = {**values["model"], **MODEL}
    values["train"] = {**values["train"], "epochs": 2, "batch_size": 8, "device": "cpu"}
    Path("backbone.json").write_text(json.dumps(BACKBONE))
    Path("config.yaml").write_text(yaml.safe_dump(values))
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "sdpl"
        result = sdpl(*words)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert Path("report.html").exists()
    (code,) = blocks("python")
    exec(compile(code, "tutorial.md", "exec"), {})
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
