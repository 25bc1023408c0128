"""The two stages on a real GPU, with PyTorch in place of an engine."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.gpu
def test_answers_with_pytorch_as_the_first_stage():
    script = Path(__file__).parents[2] / "benchmarks" / "two_stage.py"
    subprocess.run([sys.executable, script, "--quick"], check=True)
