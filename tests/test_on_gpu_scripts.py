"""What `benchmarks/on_gpu.sh` runs says in one line that there is no GPU; nothing of it needs more than it carries."""

import re
import subprocess
import sys
from pathlib import Path

import kernel
import kernel_once
import pytest
import torch
import two_stage
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("script", [kernel, two_stage])
def test_a_benchmark_without_a_gpu_is_one_line(script):
    result = CliRunner().invoke(script.main, [])
    assert result.exit_code == 1
    assert re.fullmatch(
        r"Error: this benchmark needs a GPU; tests/\w+ shows? what can be shown without one\.\n", result.output
    )


def test_the_check_without_a_gpu_is_one_line():
    with pytest.raises(SystemExit, match="this check needs a GPU; tests/kernels show what can be shown without one"):
        kernel_once.main()


@pytest.mark.slow
def test_the_script_without_a_gpu_runs_nothing(tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    result = subprocess.run(["bash", SCRIPT, "run", tmp_path / "r"], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "PyTorch finds no GPU here: nothing was run"
    assert not (tmp_path / "r" / "log.txt").exists()


CARRIED_ONLY = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden}:
            raise AssertionError(name + " is not there on the machine with the GPU")

sys.meta_path.insert(0, Forbidden())
sys.path.insert(0, {benchmarks!r})
import kernel, kernel_once, two_stage
"""


@pytest.mark.slow
def test_the_steps_import_nothing_that_is_not_carried():
    script = CARRIED_ONLY.format(
        forbidden={
            "open_clip",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "rich",
            "sklearn",
            "scipy",
            "yaml",
            "tensorrt_rtx",
        },
        benchmarks=str(ROOT / "benchmarks"),
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
