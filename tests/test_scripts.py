"""Benchmarks, experiments and examples import names that exist; running them takes too long for a test."""

import ast
import importlib
from pathlib import Path

import pytest

import sdpl

ROOT = Path(sdpl.__file__).parent.parent
FOLDERS = ("benchmarks", "experiments", "examples")
SCRIPTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_sdpl_exists(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdpl"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
