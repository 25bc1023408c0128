"""The lines of docs/scale.md that read scores, each with its own library."""

import glob
from pathlib import Path

import numpy as np
import pytest

import sdpl

DOCS = Path(sdpl.__file__).parent.parent / "docs" / "scale.md"
LINES = DOCS.read_text().split("```python\n")[1].split("```")[0].splitlines()


def test_there_is_a_line_for_each_library():
    assert [line.split(".")[0] for line in LINES] == ["pandas", "polars", "duckdb", "datasets"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(".")[0])
@pytest.mark.parametrize("keep", ["all", "top:2"])
@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
def test_one_line_reads_it(sdpl, bundle, tars, tmp_path, monkeypatch, line, keep):
    name = line.split(".")[0]
    library = pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    sdpl("score", bundle, *tars[:2], "--out", "scores", "--keep", keep, "--dtype", "float16", "--embeddings")
    table = eval(line, {name: library, "glob": glob})  # a line of our own docs
    rows = {
        "pandas": lambda: table.to_dict("records"),
        "polars": lambda: table.to_dicts(),
        "duckdb": lambda: [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()],
        "datasets": lambda: list(table),
    }[name]()
    assert sorted(row["key"] for row in rows) == [f"{i:06d}" for i in range(8)]
    assert {len(row["scores"]) for row in rows} == {2 if keep == "top:2" else 10}
    assert {len(row["embedding"]) for row in rows} == {16}
    assert all(0.99 < np.linalg.norm(np.asarray(row["embedding"], np.float32)) < 1.01 for row in rows)
    assert all(0 < score < 1 for row in rows for score in row["scores"])
