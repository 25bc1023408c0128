"""The wheel and the sdist hold everything, and a wheel in an empty environment recognises an image without PyTorch."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sdpl

ROOT = Path(sdpl.__file__).parent.parent
RECOGNISE = """
import sys
from sdpl import Recognizer
with Recognizer.open(sys.argv[1]) as recognizer:
    (result,) = recognizer.recognize([sys.argv[2]])
    print(recognizer.target, len(result.scores))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the sdist and the wheel, built from a copy: building leaves files beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "sdpl", source / "sdpl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.mark.slow
def test_both_hold_every_file_of_the_package(built):
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sdpl").rglob("*") if p.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"sdpl_toolkit-{sdpl.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        assert expected <= {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


@pytest.mark.slow
def test_the_wheel_alone_recognises_an_image(built, bundle, scenes, tmp_path):
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[runtime]"]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode != 0 and "No matching distribution found for" in installed.stderr:
        pytest.skip(f"no package index is reachable: {installed.stderr.splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    photo = scenes / "test" / "000000.jpg"
    run = [python, "-I", "-c", RECOGNISE, str(bundle), str(photo)]
    result = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "cpu:fp32 10\n"), result.stderr
    command = [tmp_path / "venv" / "bin" / "sdpl-predict", str(bundle), str(photo)]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
