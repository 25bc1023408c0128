"""Starts the tests that run on the driver of host memory, in a process that finds it as libcuda.so.1.

HOST_DRIVER_SANITIZER=thread: the driver under the thread sanitizer, to be run by hand. It sees what the driver copies,
what NumPy copies, and every lock; not the emulated kernels, whose threads are fibers.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_driver import build

HERE = Path(__file__).parent
FILES = [path for path in sorted(HERE.rglob("test_*.py")) if "pytest.mark.host_driver" in path.read_text()]
SANITIZED = os.environ.get("HOST_DRIVER_SANITIZER") == "thread"
# ONNX Runtime's and Arrow's own threads, whose atomics the sanitizer cannot see; memory that the C library gives from a
# thread that has ended to the next one
NOT_OURS = "race:onnxruntime_pybind11_state\nrace:libarrow\nrace:_dl_deallocate_tls\n"


@pytest.mark.slow
@pytest.mark.skipif("HOST_DRIVER" in os.environ, reason="this is that process")
def test_on_the_driver_of_host_memory(gpu_bundle, tmp_path):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    flags = ("-fsanitize=thread", "-g") if SANITIZED else ()
    environment = {**inherited, **build(tmp_path, flags=flags), "HOST_DRIVER_BUNDLE": str(gpu_bundle)}
    command = [sys.executable, "-m", "pytest", "-m", "host_driver", "-p", "no:cacheprovider", "--durations=3", *FILES]
    if SANITIZED:
        command = ["setarch", "-R", *command]  # the sanitizer needs its addresses
        environment |= _sanitizer(tmp_path)
    result = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout
    assert not [path.read_text()[:4000] for path in tmp_path.glob("races.*")]


def _sanitizer(folder: Path) -> dict[str, str]:
    """The settings of a process that loads the sanitizer, whose reports become files named races."""
    library = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout
    (folder / "not_ours").write_text(NOT_OURS)
    options = f"suppressions={folder / 'not_ours'} log_path={folder / 'races'} exitcode=0 history_size=7"
    return {"LD_PRELOAD": library.strip(), "TSAN_OPTIONS": options}
