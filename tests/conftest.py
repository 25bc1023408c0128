"""Tiny real things, made once: scenes on disk, a trained checkpoint, its bundle."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from configs import write_config
from sdpl.bundle import Bundle
from sdpl.cli import main
from sdpl.demo.scenes import write_coco
from sdpl.export.fold import fold
from sdpl.export.onnx import encoder_to_onnx
from sdpl.kernels import gpu
from sdpl.train.checkpoint import load_checkpoint, restore_model

REAL_LOOK = gpu.look


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped, with the reason, where there is none; those marked host_driver everywhere but in
    the process that `test_on_host_driver.py` starts for them."""
    if "HOST_DRIVER" not in os.environ:
        for item in items:
            if item.get_closest_marker("host_driver"):
                item.add_marker(pytest.mark.skip(reason="runs in test_on_host_driver.py"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = marked and gpu.gpu_obstacle()
    for item in marked if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _looks_gpu_less():
    """The machine looks as if it had no GPU, so that every test means the same with one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "look", lambda device_id: "no CUDA GPU was found (hidden from this test)")
        yield


@pytest.fixture(autouse=True)
def _gpu_tests_see_it(request, monkeypatch):
    if request.node.get_closest_marker("gpu") or request.node.get_closest_marker("host_driver"):
        monkeypatch.setattr(gpu, "look", REAL_LOOK)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def sdpl():
    """Runs a command in this process: sdpl("train", ...) -> result with exit_code, output, stderr."""

    def run(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def fails(sdpl):
    """Runs a command that must end with a status (2) and one line without traceback; returns that line."""

    def run(*words, status=2) -> str:
        result = sdpl(*words)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.exit_code == status, result.output
        assert len(lines) == 1
        assert "Traceback" not in result.output
        return lines[0]

    return run


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder with COCO-format splits "train" (24 scenes) and "test" (8 scenes)."""
    folder = tmp_path_factory.mktemp("scenes")
    write_coco(folder, "train", 24, seed=1)
    write_coco(folder, "test", 8, seed=2)
    return folder


@pytest.fixture
def config(tmp_path, scenes):
    """write_config for this test: config(train={"lr": 1}) -> path."""
    return lambda **changes: write_config(tmp_path, scenes, **changes)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, scenes) -> Path:
    """The output folder of a real training run through the command line."""
    folder = tmp_path_factory.mktemp("run")
    result = CliRunner().invoke(main, ["train", str(write_config(folder, scenes)), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture(scope="session")
def checkpoint(run_folder) -> Path:
    return run_folder / "model.ckpt"


@pytest.fixture(scope="session")
def bundle(checkpoint, tmp_path_factory) -> Path:
    """The bundle of `checkpoint`, through the command line. Read only: copy it before changing it."""
    out = tmp_path_factory.mktemp("bundle") / "model.sdpl"
    result = CliRunner().invoke(main, ["export", str(checkpoint), "--out", str(out), "--target", "cpu:fp32"])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def gpu_bundle(request, tmp_path_factory) -> Path:
    """A bundle with targets for a CPU and for an RTX 3090, its engine really built. Read only."""
    if "HOST_DRIVER_BUNDLE" in os.environ:  # the process before this one has made it
        return Path(os.environ["HOST_DRIVER_BUNDLE"])
    checkpoint, scenes = (request.getfixturevalue(name) for name in ("checkpoint", "scenes"))
    out = tmp_path_factory.mktemp("gpu-bundle") / "model.sdpl"
    targets = ["--target", "cpu:fp32", "--target", "cpu:int8", "--target", "rtx:sm86:fp16"]
    words = ["export", str(checkpoint), "--out", str(out), *targets, "--calibrate", str(scenes / "test")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def encoder(checkpoint):
    """The float32 encoder's graph of the trained checkpoint. Read only."""
    _, model = restore_model(load_checkpoint(checkpoint))
    return encoder_to_onnx(model.encoder, fold(model), torch.zeros(2, 64, 64, 3, dtype=torch.uint8))


@pytest.fixture(scope="session")
def images(bundle):
    """The images of the proof, uint8 [6,64,64,3]."""
    return Bundle.open(bundle).proof()[0]
