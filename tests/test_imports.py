"""Who may import whom (docs/structure.md), and what must not be loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loading import loaded_by

import sdpl

ROOT = Path(sdpl.__file__).parent
ROOMS = {  # what each may import beside the root modules and `preprocess`
    "preprocess": set(),
    "kernels": set(),
    "data": set(),
    "evaluate": {"data"},
    "runtime": {"kernels"},
    "scale": {"kernels", "runtime"},
    "train": {"kernels", "data", "evaluate"},
    "export": {"train", "kernels", "data", "evaluate", "runtime"},
    "server": {"runtime", "kernels"},
    "demo": {"train", "export", "data", "evaluate", "runtime"},
    "cli": {"train", "export", "kernels", "data", "evaluate", "runtime", "scale", "server", "demo"},
}
ROOT_MODULES = {  # those of the root that import rooms, and why
    "__init__": {"runtime"},  # `from sdpl import Recognizer`, when it is asked for
    "__main__": {"cli"},
    "models": {"evaluate", "runtime", "train"},  # a checkpoint or a bundle, each opened by its own room
}


def imported_rooms(path: Path) -> set[str]:
    """The rooms of sdpl that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("sdpl."):
            names.add(node.value)  # importlib.import_module("sdpl.runtime")
    return {name.split(".")[1] for name in names if name.startswith("sdpl.")} & ROOMS.keys()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_onnx_runtime_begins_no_thread_that_sends_usage_data():
    code = "import os, sdpl, numpy; n = len(os.listdir('/proc/self/task')); import onnxruntime; "
    code += "print(len(os.listdir('/proc/self/task')) - n)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "0\n"


def test_what_is_promised_is_shown_before_it_is_loaded():
    code = "import sdpl, sys; print(*dir(sdpl)); print('sdpl.errors' in sys.modules, sdpl.UserError.__module__)"
    shown, loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    assert {name for name in shown.split() if not name.startswith("_")} == set(sdpl.__all__) - {"__version__"}
    assert loaded == "False sdpl.errors"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that sends is a fork")
def test_openvino_sends_no_usage_data_and_writes_nothing_at_home(tmp_path):
    code = "import multiprocessing as m, threading; from sdpl.targets import BACKENDS; BACKENDS['openvino'].load()\n"
    code += (
        "import sys, time; time.sleep(0.5); print('openvino_telemetry.main' in sys.modules, len(m.active_children()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "False 0\n"
    assert list(tmp_path.iterdir()) == []


def test_every_folder_is_a_room():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    for path in (ROOT / room).rglob("*.py"):
        excess = imported_rooms(path) - ROOMS[room] - {room, "preprocess"}
        assert not excess, f"{path.relative_to(ROOT)} imports {excess}"


def test_root_modules_import_no_room_but_the_named():
    for path in ROOT.glob("*.py"):
        excess = imported_rooms(path) - ROOT_MODULES.get(path.stem, set()) - {"preprocess"}
        assert not excess, f"{path.name} imports {excess}"


def modules(room: str) -> str:
    """All modules of a room, for an import statement."""
    paths = [path.relative_to(ROOT.parent).with_suffix("") for path in (ROOT / room).rglob("*.py")]
    return ", ".join(".".join(path.parts).removesuffix(".__init__") for path in paths)


def test_the_runtime_needs_no_training_library():
    loaded = loaded_by(f"import {modules('runtime')}, sdpl.plots")
    assert not loaded & {"torch", "open_clip", "sklearn", "yaml", "onnx", "matplotlib", "array_api_compat"}


@pytest.mark.parametrize("room", ["data", "evaluate"])
def test_data_and_evaluation_need_no_torch(room):
    loaded = loaded_by(f"import {modules(room)}")
    assert not loaded & {"torch", "open_clip", "tensorboard"}


def test_scoring_at_scale_needs_no_training_library_and_loads_no_ray():
    loaded = loaded_by(f"import {modules('scale')}")
    assert not loaded & {"torch", "open_clip", "sklearn", "yaml", "onnx", "ray", "s3fs"}


def test_recognising_loads_no_torch(bundle, scenes):
    loaded = loaded_by(
        "from sdpl.runtime import Recognizer\n"
        f"Recognizer.open({str(bundle)!r}).recognize([{str(scenes / 'test' / '000000.jpg')!r}])"
    )
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "open_clip", "sklearn", "onnx"}


@pytest.mark.slow
def test_evaluating_a_bundle_and_looking_at_data_loads_no_torch(bundle, scenes, tmp_path):
    annotations = str(scenes / "annotations" / "instances_test.json")
    for words in (
        ["eval", str(bundle), annotations, "--report", str(tmp_path / "r.html")],
        ["data", "check", annotations, "--report", str(tmp_path / "d.html")],
        ["data", "mask", annotations, "--proportion", "0.5", "--out", str(tmp_path / "p.csv")],
    ):
        loaded = loaded_by(f"from sdpl.cli import main\nmain({words!r}, standalone_mode=False)")
        assert "numpy" in loaded
        assert "torch" not in loaded


def test_a_mistake_in_a_configuration_is_said_before_pytorch_is_loaded(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {train: {annotations: a.json}, wrkers: 2}")
    words = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    code = f"from sdpl.cli import main\ntry:\n    main({words!r})\nexcept SystemExit as end:\n    assert end.code == 2"
    assert not loaded_by(code) & {"torch", "open_clip"}


def test_help_loads_no_part():
    loaded = loaded_by("from sdpl.cli import main\nmain(['export', '--help'], standalone_mode=False)")
    assert not loaded & {"torch", "numpy", "pydantic", "onnxruntime"}
