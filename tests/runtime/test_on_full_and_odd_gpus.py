"""What a GPU may refuse, on the driver of host memory: one line each, nothing left on the GPU, and it goes on."""

import shutil
import sys

import numpy as np
import pytest
from host_driver import get, put
from host_encoder import HostEncoder
from PIL import Image

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.kernels import compile, gpu
from sdpl.runtime import backends, engines, environment, gpu_resize
from sdpl.runtime.backends import Choice, Cores
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.recognizer import Recognizer

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

TARGET = "rtx:sm86:fp16"
HELD = ("used", "pinned", "streams", "graphs", "modules")


def held():
    return {name: get(name) for name in HELD}


@pytest.fixture
def open_bundle(monkeypatch, gpu_bundle):
    """open_bundle(path, device) -> a recognizer as `Recognizer.open` makes it, but for the engine."""
    made = {}

    def host_engine(bundle, name, target, device):
        encoder = HostEncoder(bundle.file(target.files["encoder"])) if not made else HostEncoder.like(made["first"])
        made.setdefault("first", encoder)
        return encoder

    monkeypatch.setitem(engines.ENCODERS, "tensorrt-rtx", host_engine)

    def make(path=gpu_bundle, device=0):
        bundle = Bundle.open(path)
        return Recognizer(bundle, Choice(TARGET, backends._open(bundle, TARGET, Cores.of(1), device), {}), device)

    return make


@pytest.fixture
def driver():
    """driver(capability=75, version=12000, ...) changes the driver for a test."""
    usual = {"capability": 86, "version": 13000, "gpus": 2, "fail_after": 0, "memory": 1 << 30}

    def change(**numbers):
        for name, value in numbers.items():
            put(name, value)
        gpu.look.cache_clear()

    yield change
    change(**usual)


@pytest.fixture
def photos():
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((64, 64), (90, 70))]


@pytest.fixture
def no_nvrtc(monkeypatch):
    def missing():
        raise UserError("compiling kernels needs NVRTC: pip install it")

    monkeypatch.setattr(compile, "_nvrtc_version", missing)


def test_whatever_call_runs_out_of_memory_the_answers_are_right_or_it_is_said(open_bundle, driver, photos, monkeypatch):
    """Every call of the driver that may, from opening to a replayed graph, once."""
    monkeypatch.setattr(gpu_resize, "BLOCKS", 1)  # emulating more takes longer

    def work(recognizer):
        for _ in range(2):
            found = recognizer.recognize(photos)
        return [*found, *recognizer.recognize(photos, attention=True)]

    def scores(results):
        return np.array([list(result.scores.values()) for result in results])

    before = held()
    with open_bundle() as recognizer:
        expected = scores(work(recognizer))
    started, said = get("may_fail"), []
    with open_bundle() as recognizer:
        work(recognizer)
    calls = get("may_fail") - started
    for call_number in range(1, calls + 1):
        driver(fail_after=call_number)
        try:
            recognizer = open_bundle()
        except OutOfMemoryError as error:
            said.append(str(error))
            assert held() == before, f"call {call_number}"
            continue
        with recognizer:
            try:
                np.testing.assert_allclose(scores(work(recognizer)), expected, atol=1e-6)
            except OutOfMemoryError as error:
                said.append(str(error))
            driver(fail_after=0)
            np.testing.assert_allclose(scores(recognizer.recognize(photos)), expected[:2], atol=1e-6)
        assert held() == before, f"call {call_number}"
    assert calls > 50
    assert 5 < len(said) < calls / 2  # most of the time it finds a way
    assert all("too little free memory" in line and "\n" not in line for line in said)


def test_a_gpu_without_cubin_and_without_nvrtc_is_one_line(open_bundle, driver, no_nvrtc):
    before = held()
    driver(capability=90)  # the bundle's engine and kernels are for 8.6
    with pytest.raises(UserError, match="compiling kernels needs NVRTC"):
        open_bundle()
    assert held() == before


def test_a_gpu_that_no_kernel_is_built_for_is_one_line(open_bundle, driver):
    before = held()
    driver(capability=75)
    with pytest.raises(UserError, match="compute capability 75: kernels are built for 80, 86, 89, 90, 100, 120"):
        open_bundle()
    assert held() == before


def test_another_gpu_compiles_what_the_bundle_lacks(open_bundle, driver, photos):
    with open_bundle() as recognizer:
        expected = recognizer.recognize(photos)
    driver(capability=90)
    with pytest.warns(UserWarning, match="has no kernel for compute capability 90: it was compiled now"):
        recognizer = open_bundle()
    with recognizer:
        assert recognizer.backend.resizes
        assert [r.scores for r in recognizer.recognize(photos)] == [r.scores for r in expected]


def test_a_driver_that_is_too_old_for_the_cubin_is_one_line(open_bundle, driver):
    before = held()
    driver(version=12080)
    with pytest.raises(UserError, match=r"the driver \(CUDA 12.8\) cannot load the kernel .* update the driver"):
        open_bundle()
    assert held() == before


def test_a_device_out_of_range_is_one_line(fails, gpu_bundle, tmp_path, scenes_of_none):
    line = "error: device 7: this machine has 2 CUDA GPUs, counted from 0."
    for words in (
        ["predict", gpu_bundle, scenes_of_none],
        ["bench", gpu_bundle],
        ["verify", gpu_bundle],
        ["info", gpu_bundle],
        ["score", gpu_bundle, scenes_of_none, "--out", tmp_path / "out"],
    ):
        assert fails(*words, "--device", "7") == line
    assert "--devices '0,7': device 7: this machine has 2 CUDA GPUs" in fails("serve", gpu_bundle, "--device", "0,7")
    with pytest.raises(UserError, match="device 2: this machine has 2 CUDA GPUs"):
        Recognizer.open(gpu_bundle, device=2)


@pytest.fixture
def scenes_of_none(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (70, 90)).save(path)
    return path


def test_clock_and_memory_are_those_of_the_gpu_that_was_named():
    second = Cuda(1)
    with second.current():
        pointer = second.allocate(5_000_000)
    try:
        assert (environment.gpu_used_mb(0), environment.gpu_used_mb(1)) == (0.0, 5.0)
        assert (environment.clock_mhz(0), environment.clock_mhz(1)) == ("1016 (GPU)", "1032 (GPU)")
        assert environment.describe(1)["gpu"]["name"] == "Host memory 1"
    finally:
        with second.current():
            second.free(pointer)


def test_a_gpu_that_does_not_tell_its_clock_has_none(monkeypatch):
    """The processor's would stand beside the GPU's times."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvml", None)
    monkeypatch.delattr("cuda.bindings.nvml", raising=False)
    assert environment.clock_mhz(0) is None


def test_a_damaged_resize_kernel_is_said(open_bundle, gpu_bundle, tmp_path):
    path = shutil.copytree(gpu_bundle, tmp_path / "m.sdpl")
    (path / "kernels" / "sm86.resize.cubin").write_bytes(b"changed")
    before = held()
    with pytest.raises(UserError, match=r"resize.cubin: is not the file that was exported"):
        open_bundle(path)
    assert held() == before


def test_the_second_gpu_takes_the_memory_and_the_first_none(open_bundle, photos):
    with open_bundle() as recognizer:
        expected = recognizer.recognize(photos)
    with open_bundle(device=1) as recognizer:
        assert [r.scores for r in recognizer.recognize(photos)] == [r.scores for r in expected]
        assert environment.gpu_used_mb(0) == 0
        assert environment.gpu_used_mb(1) > 0
