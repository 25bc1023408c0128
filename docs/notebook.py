"""docs/tutorial.ipynb out of docs/tutorial.md: `make notebook`. The page is the source; a test holds the two equal."""

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = Path(__file__).parent / "tutorial.md"
BLOCK = re.compile(r"^```(console|yaml|python)\n(.*?)^```\n", flags=re.S | re.M)
# -e: a failure stops the notebook
MAGIC = {"console": "%%bash -e\n", "yaml": "%%writefile config.yaml\n", "python": ""}
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def notebook(text: str) -> nbformat.NotebookNode:
    """Commands, configuration and Python of the page become cells that run; everything between is text."""
    cells, end = [], 0
    for block in BLOCK.finditer(text):
        cells.append(new_markdown_cell(text[end : block.start()].strip()))
        cells.append(new_code_cell(MAGIC[block[1]] + block[2].rstrip()))
        end = block.end()
    cells.append(new_markdown_cell(text[end:].strip()))
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # the same every time
    return new_notebook(cells=[cell for cell in cells if cell.source], metadata=KERNEL)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE.with_suffix(".ipynb")
    nbformat.write(notebook(PAGE.read_text(encoding="utf-8")), out)
