"""A bundle with every target for a CPU."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdpl.cli import main

CPU_TARGETS = ("cpu:fp32", "cpu:int8", "openvino:fp32", "openvino:bf16", "openvino:int8")


@pytest.fixture(scope="session")
def exported_for_cpus(checkpoint, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cpu-bundle") / "model.sdpl"
    words = ["export", str(checkpoint), "--out", str(out), "--calibrate", str(scenes / "test")]
    result = CliRunner().invoke(main, words + [word for name in CPU_TARGETS for word in ("--target", name)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def cpu_bundle(exported_for_cpus, tmp_path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(exported_for_cpus, tmp_path / "cpu.sdpl")
