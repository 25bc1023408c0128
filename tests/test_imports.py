"""Who may import whom (design, section 4), and what must not be loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import sdpl

ROOT = Path(sdpl.__file__).parent
PARTS = {"train", "export", "kernels", "runtime", "report", "demo"}
ALLOWED = {
    "kernels": set(),
    "train": {"kernels"},
    "export": {"train", "kernels"},
    "runtime": {"kernels"},
    "report": {"train", "runtime"},
    "demo": {"train", "export", "runtime", "report"},
    "": set(),  # the root modules, but for the commands
}


def imported_parts(path: Path) -> set[str]:
    """The parts of sdpl, and "cli", that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    seconds = {name.split(".")[1] for name in names if name.startswith("sdpl.")}
    return seconds & (PARTS | {"cli"})


def test_parts_import_only_what_they_may():
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0] if path.parent != ROOT else ""
        if path.name in ("cli.py", "__main__.py") and part == "":
            continue
        excess = imported_parts(path) - ALLOWED[part] - {part}
        assert not excess, f"{path.relative_to(ROOT)} imports {excess}"


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running this code in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split("\n")[-2].split()}


def test_the_runtime_needs_no_training_library():
    loaded = loaded_by("import sdpl.runtime, sdpl.runtime.bench, sdpl.runtime.predict, sdpl.runtime.heatmap")
    assert not loaded & {"torch", "open_clip", "sklearn", "yaml", "onnx", "matplotlib", "array_api_compat"}


def test_what_of_training_needs_no_torch():
    modules = ("augment", "cache", "data", "evaluate", "log", "metrics", "report", "sweep_report", "thresholds")
    loaded = loaded_by("import " + ", ".join(f"sdpl.train.{name}" for name in modules))
    assert not loaded & {"torch", "open_clip", "matplotlib", "tensorboard"}


def test_recognising_loads_no_torch(bundle, scenes):
    loaded = loaded_by(
        "from sdpl.runtime import Recognizer\n"
        f"Recognizer.open({str(bundle)!r}).recognize([{str(scenes / 'test' / '000000.jpg')!r}])"
    )
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "open_clip", "sklearn", "onnx"}


def test_evaluating_a_bundle_and_looking_at_data_loads_no_torch(bundle, scenes, tmp_path):
    annotations = str(scenes / "annotations" / "instances_test.json")
    for words in (
        ["eval", str(bundle), annotations, "--report", str(tmp_path / "r.html")],
        ["data", "check", annotations],
        ["data", "mask", annotations, "--proportion", "0.5", "--out", str(tmp_path / "p.csv")],
    ):
        loaded = loaded_by(f"from sdpl.cli import main\nmain({words!r}, standalone_mode=False)")
        assert "numpy" in loaded
        assert "torch" not in loaded


def test_help_loads_no_part():
    loaded = loaded_by("from sdpl.cli import main\nmain(['export', '--help'], standalone_mode=False)")
    assert not loaded & {"torch", "numpy", "pydantic", "onnxruntime"}
