"""One process, two GPUs of the driver of host memory: both work, and the files are those of one GPU, bit by bit."""

import threading

import pytest
from host_driver import get, put
from host_encoder import HostEncoder

from sdpl.errors import UserError
from sdpl.kernels import gpu
from sdpl.runtime import backends, engines
from sdpl.scale import Options, score

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

TARGET = "rtx:sm86:fp16"
HELD = ("used", "pinned", "streams", "graphs", "modules")


@pytest.fixture
def encoders(monkeypatch):
    """The engines that were opened, by GPU; GPUs of one name. Nothing of them stays."""
    opened = {}

    def host_engine(bundle, name, target, device):
        opened[device.device_id] = HostEncoder(bundle.file(target.files["encoder"]))
        return opened[device.device_id]

    monkeypatch.setitem(engines.ENCODERS, "tensorrt-rtx", host_engine)
    monkeypatch.setattr(backends, "target_obstacle", lambda *_: None)
    put("alike", 1)
    gpu.look.cache_clear()
    before = [get(name) for name in HELD]
    yield opened
    put("alike", 0)
    gpu.look.cache_clear()
    assert [get(name) for name in HELD] == before


def options(gpu_bundle, out, *devices):
    return Options(str(gpu_bundle), str(out), TARGET, batch_size=2, devices=devices)


def test_both_work_and_the_files_are_those_of_one(encoders, gpu_bundle, tars, rows, tmp_path, monkeypatch):
    inputs = list(map(str, tars))
    one = score(options(gpu_bundle, tmp_path / "one"), inputs)
    assert encoders.pop(0).closed
    meeting, real, met = threading.Barrier(2, timeout=60), HostEncoder.enqueue, set()

    def enqueue(encoder, *words):
        """The first batches of the two wait for each other: broken, unless they are on their way at once."""
        if encoder not in met:
            met.add(encoder)
            meeting.wait()
        real(encoder, *words)

    monkeypatch.setattr(HostEncoder, "enqueue", enqueue)
    both = score(options(gpu_bundle, tmp_path / "both", 0, 1), inputs)
    assert encoders.keys() == {0, 1}
    assert all(len(encoder.batches) > 1 for encoder in encoders.values())
    assert both.counts == one.counts
    assert rows(tmp_path / "both") == rows(tmp_path / "one")
    assert 0 < both.model_busy <= 1


def test_gpus_of_two_kinds_would_round_differently(encoders, gpu_bundle, tars, tmp_path):
    put("alike", 0)
    gpu.look.cache_clear()
    with pytest.raises(UserError, match=r"--device: these GPUs differ \(0: Host memory 0, 1: Host memory 1\)"):
        score(options(gpu_bundle, tmp_path, 0, 1), [str(tars[0])])
    assert not encoders


def test_a_device_that_is_missing_or_not_needed(encoders, gpu_bundle, tars, tmp_path):
    with pytest.raises(UserError, match="device 2: this machine has 2 CUDA GPUs"):
        score(options(gpu_bundle, tmp_path, 0, 2), [str(tars[0])])
    on_cpu = Options(str(gpu_bundle), str(tmp_path), "cpu:fp32", devices=(0, 1))
    with pytest.raises(UserError, match="--device: cpu:fp32 runs on the CPU: leave the option out"):
        score(on_cpu, [str(tars[0])])
