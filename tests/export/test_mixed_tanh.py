"""`--tanh mixed`: the kernel's share of polynomials is that of the precision's error budget, and is told."""

import json
import re

import pytest

from sdpl.bundle import Bundle
from sdpl.kernels.compile import cubin
from sdpl.runtime.tables import head_of

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")


def test_the_budget_decides_and_both_errors_are_told(sdpl, checkpoint, tmp_path):
    words = ("--target", "rtx:sm86:fp16", "--target", "rtx:sm86:fp32", "--tanh", "mixed")
    result = sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl", *words)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(tmp_path / "m.sdpl")
    narrow, exact = (bundle.manifest.targets[name] for name in ("rtx:sm86:fp16", "rtx:sm86:fp32"))
    assert (narrow.polynomial, exact.polynomial) == (2, 0)
    tanh = narrow.notes["tanh"]
    assert tanh["by_unit_alone"] < tanh["attention_moved"] <= 1e-3
    for target, dtype, polynomial in ((narrow, "float16", 2), (exact, "float32", 0)):
        code = bundle.file(target.files["cubin.sm86"]).read_bytes()
        assert code == cubin("86", dtype, polynomial=polynomial)
    state = json.loads(sdpl("info", bundle.path, "--json").stdout)["targets"]
    told = r"kernel, up to 2 of 8 tanh by polynomial, 0\.\d{3}% of attention moved, not 0\.\d{3}%"
    assert re.fullmatch(told, state["rtx:sm86:fp16"]["head"])
    assert state["rtx:sm86:fp32"]["head"] == "kernel"
    assert "of 8 tanh" in " ".join(sdpl("info", bundle.path).stdout.split())


@pytest.mark.parametrize("notes", [{"tanh": 3}, {"tanh": {"polynomial_of_8": "x"}}, {"tanh": {"polynomial_of_8": 99}}])
def test_notes_of_another_form_are_passed_by(notes, gpu_bundle):
    target = Bundle.open(gpu_bundle).manifest.targets["rtx:sm86:fp16"].model_copy(update={"notes": notes})
    assert target.polynomial == 0
    assert head_of(target) == "kernel"
    assert head_of(target.model_copy(update={"notes": {"separable_head": 1}})) == "kernel"


def test_without_the_kernel_it_is_refused(fails, checkpoint, tmp_path):
    line = fails("export", checkpoint, "--out", tmp_path / "m.sdpl", "--target", "cpu:fp32", "--tanh", "mixed")
    assert "--tanh mixed is for the kernel: add a GPU target, such as rtx:sm86:fp16, with --head exact" in line
