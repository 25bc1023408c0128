"""The Python of docs/recipes.md, run as it is printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdpl
from configs import write_config
from sdpl.data.formats import read_labels
from sdpl.train.model.word_vectors import word_vectors

ROOT = Path(sdpl.__file__).parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```\n", (ROOT / "docs" / "recipes.md").read_text(), flags=re.S | re.M)


def run(word: str, folder: Path) -> str:
    """What the one block with this word prints."""
    (block,) = (block for block in BLOCKS if word in block)
    return subprocess.run(
        [sys.executable, "-c", block], cwd=folder, check=True, capture_output=True, text=True, timeout=300
    ).stdout


@pytest.mark.slow
def test_a_callback_follows_a_run(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_config(tmp_path, scenes)
    assert [line.split()[0] for line in run("Callback", tmp_path).splitlines()] == ["1", "2"]
    assert (tmp_path / "run" / "model.ckpt").exists()


def test_the_field_s_files_of_visual_genome_become_tables(tmp_path):
    (tmp_path / "vg_200_vector.txt").write_text("man\nfire hydrant\nsign, red\n")
    np.save(tmp_path / "vg_200_vector.npy", np.eye(3, dtype=np.float32))
    index = {"1.jpg": [0, 2], "2.jpg": [1], "3.jpg": []}
    (tmp_path / "vg_category_200_labels_index.json").write_text(json.dumps(index))
    (tmp_path / "VG_100K").mkdir()
    for name in index:
        Image.new("RGB", (16, 16)).save(tmp_path / "VG_100K" / name)
    (tmp_path / "train_list_500.txt").write_text("1.jpg\n3.jpg\n")
    (tmp_path / "test_list_500.txt").write_text("2.jpg\n")
    run("vg_category", tmp_path)
    data = read_labels(tmp_path / "vg200_train.csv")
    assert data.categories == ("man", "fire hydrant", "sign, red")
    assert data.labels.tolist() == [[1, -1, 1], [-1, -1, -1]]
    assert data.images[1] == tmp_path / "VG_100K" / "3.jpg"
    assert read_labels(tmp_path / "vg200_test.csv").labels.tolist() == [[-1, 1, -1]]
    assert np.array_equal(word_vectors(str(tmp_path / "vg_200_vector.npy"), data.categories), np.eye(3))
