"""What a serving machine carries: the extra `runtime`, or others, in a fresh environment, without torch.

    python benchmarks/serving.py BUNDLE [--extras runtime,openvino --target openvino:fp32] [--out FILE.json]

Installed size, time of `import sdpl.runtime`, and the resident memory after opening the bundle and scoring one image,
each in a new process; medians of several.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from sdpl.runtime.environment import environment

ROOT = Path(__file__).parent.parent
PROCESSES = 7
IMPORT = "import time; t = time.perf_counter(); import sdpl.runtime; print(1000 * (time.perf_counter() - t))"
MEMORY = """
import sys, numpy as np
from pathlib import Path
from sdpl.runtime import Recognizer
recognizer = Recognizer.open(sys.argv[1], sys.argv[2])
recognizer.scores(recognizer.bundle.proof()[0][:1])
lines = Path("/proc/self/status").read_text().splitlines()
print(int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024)
assert "torch" not in sys.modules
"""


def median_of(python: Path, code: str, *arguments: str) -> float:
    """The median of what a program prints, over several processes; the first only warms the disk's cache."""
    command = [str(python), "-c", code, *arguments]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(PROCESSES + 1)]
    return statistics.median(float(run.stdout) for run in runs[1:])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--extras", default="runtime", show_default=True)
@click.option("--target", default="cpu:fp32", show_default=True, help="What the memory is measured with.")
@click.option("--out", type=click.Path(path_type=Path))
def main(bundle: Path, extras: str, target: str, out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as source:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        before = size_mb(Path(folder))
        shutil.copytree(ROOT / "sdpl", Path(source) / "sdpl")  # building leaves files beside what it builds
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, Path(source) / name)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{source}[{extras}]"]
        subprocess.run(install, check=True)
        result = {
            "environment": environment(),
            "extras": extras,
            "target": target,
            "installed_mb": size_mb(Path(folder)) - before,
            "import_ms": median_of(python, IMPORT),
            "resident_mb": median_of(python, MEMORY, str(bundle.resolve()), target),
            "bundle_mb": size_mb(bundle),
        }
    print(json.dumps(result, indent=2))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


if __name__ == "__main__":
    main()
