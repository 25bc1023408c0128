"""Starts the tests that run on the driver of host memory, in a process that finds it as libcuda.so.1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_driver import build

HERE = Path(__file__).parent
FILES = [path for path in sorted(HERE.rglob("test_*.py")) if "pytest.mark.host_driver" in path.read_text()]


@pytest.mark.slow
@pytest.mark.skipif("HOST_DRIVER" in os.environ, reason="this is that process")
def test_on_the_driver_of_host_memory(gpu_bundle, tmp_path):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {**inherited, **build(tmp_path), "HOST_DRIVER_BUNDLE": str(gpu_bundle)}
    command = [sys.executable, "-m", "pytest", "-m", "host_driver", "-p", "no:cacheprovider", "--durations=3", *FILES]
    result = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout
