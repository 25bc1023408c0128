"""PyCUDA's launcher on the driver of host memory: builds PyCUDA (some minutes), then runs checks and the example.

    PYTHONPATH=. python tests/support/pycuda_on_host_driver.py FOLDER

FOLDER keeps what was built, so that a second run takes seconds. Needs g++, the package index for PyCUDA's source, and
cuda.h of the wheels that PyTorch brings. Too slow for the test suite, which checks what the launcher hands to PyCUDA.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from host_driver import build, cuda_headers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VERSION = "2026.1"
HEADER = "nvidia-cuda-profiler-api>=13.0,<13.1"  # cudaProfiler.h, which PyTorch's wheels lack
SITECONF = """
USE_SHIPPED_BOOST, CUDA_ENABLE_GL, CUDA_ENABLE_CURAND = True, False, False
CUDA_ROOT, CUDA_INC_DIR, CUDA_PRETEND_VERSION = {root!r}, {includes!r}, "13000"
CUDADRV_LIB_DIR, CUDADRV_LIBNAME, CXXFLAGS, LDFLAGS = [{driver!r}], ["cuda"], ["-O0", "-w"], []
"""


def install(folder: Path, driver: Path) -> None:
    """PyCUDA and what it needs, into the folder's own `site`: not where everything else is installed."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", folder / "cuda", HEADER], check=True)
    command = [
        *pip,
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "pycuda",
        "--dest",
        folder,
        f"pycuda=={VERSION}",
    ]
    subprocess.run(command, check=True)
    with tarfile.open(folder / f"pycuda-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    source, include = folder / f"pycuda-{VERSION}", cuda_headers()
    (header,) = folder.glob("cuda/nvidia/*/include/cudaProfiler.h")
    values = {"root": str(Path(include).parent), "includes": [include, str(header.parent)], "driver": str(driver)}
    (source / "siteconf.py").write_text(SITECONF.format(**values))
    (driver / "libcuda.so").symlink_to("libcuda.so.1")
    subprocess.run([*pip, "install", "--quiet", "--target", folder / "site.part", source, "numpy<3"], check=True)
    (folder / "site.part").rename(folder / "site")


def main(folder: Path) -> None:
    driver = folder / "driver"
    driver.mkdir(parents=True, exist_ok=True)
    environment = build(driver, "pycuda.cpp")
    if not (folder / "site").exists():
        install(folder, driver)
    paths = [ROOT, HERE, *sys.path[1:], folder / "site"]
    environment |= {"PYTHONPATH": ":".join(map(str, paths))}
    example = ROOT / "examples" / "pycuda_pooling.py"
    subprocess.run([sys.executable, HERE / "pycuda_checks.py", example], env={**os.environ, **environment}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
