"""Engines for an RTX 3090, really built by TensorRT-RTX on a machine without a GPU."""

import dataclasses
import re
import shutil
import signal
import threading
import time

import pytest
import tensorrt_rtx

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.export.engines import write_gpu_files
from sdpl.export.tensorrt import build_engine, require_buildable
from sdpl.install import install_line
from sdpl.kernels.compile import cubin
from sdpl.kernels.gpu import Gpu
from sdpl.manifest import Profile
from sdpl.runtime.availability import invalid_engine, logger
from sdpl.targets import KINDS, parse_targets


def spec(name):
    return parse_targets((name,))[0]


@pytest.fixture
def graph(gpu_bundle):
    return gpu_bundle / "encoder.fp16.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision_builds_from_a_checkpoint(sdpl, checkpoint, scenes, tmp_path, precision):
    target = f"rtx:sm86:{precision}"
    words = ["--target", target, "--batch", "1:2:4", "--calibrate", scenes / "test"]
    result = sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl", *words)
    assert result.exit_code == 0, result.output
    assert f"{target}: built, not run; 6 images: scores differ" in result.stdout
    bundle = Bundle.open(tmp_path / "m.sdpl")
    record = bundle.manifest.targets[target]
    assert record.compute_capability == "86"
    assert record.profile == Profile(min=1, opt=2, max=4)
    assert record.built_with["tensorrt_rtx"] == tensorrt_rtx.__version__
    assert record.workspace_bytes > 0
    assert record.verification.scored_by == "graph"
    assert {"encoder", "engine", "head", "cubin.sm86", "resize.sm86"} == set(record.files)
    for name in record.files.values():
        assert bundle.file(name).stat().st_size > 0


def test_the_engine_is_one_that_the_runtime_knows(gpu_bundle):
    """As far as a machine without a GPU can tell: a whole engine has a sound header, a cut one does not."""
    log = logger(tensorrt_rtx)
    runtime = tensorrt_rtx.Runtime(log)
    code = (gpu_bundle / "targets" / "rtx-sm86-fp16" / "encoder.engine").read_bytes()
    assert "damaged" not in (invalid_engine(runtime, code, log) or "")
    assert "the file is damaged" in invalid_engine(runtime, b"no engine" * 100, log)


def test_a_graph_that_is_none_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="tensorrt_rtx cannot read the graph"):
        build_engine(tmp_path / "x.onnx", spec("rtx:sm86:fp16"), Profile())


@pytest.fixture
def package(monkeypatch):
    """package("rtx", name) makes another module the package of a kind of target."""
    return lambda kind, name: monkeypatch.setitem(
        KINDS, kind, dataclasses.replace(KINDS[kind], package=name, floor="1")
    )


def test_a_missing_package_is_named_with_its_fix(package):
    package("rtx", "no_such_tensorrt")
    with pytest.raises(UserError, match="no_such_tensorrt is not installed: " + re.escape(install_line("rtx"))):
        require_buildable(spec("rtx:sm86:fp16"))


def test_tensorrt_without_a_gpu_is_named(package):
    """The package's name is replaced by TensorRT's, which cannot be installed here; the check is the real one."""
    package("tensorrt", "tensorrt_rtx")
    with pytest.raises(UserError, match="builds on the GPU that will run the engine, and no CUDA GPU was found"):
        require_buildable(spec("tensorrt:fp16"))


def test_the_same_code_builds_with_tensorrt_on_a_gpu(package, monkeypatch, graph):
    """TensorRT's path through the API that both packages share; only the package's name and the GPU are made up."""
    gpu = Gpu("a GPU", "86", 24 << 30, "CUDA 13.0")
    package("tensorrt", "tensorrt_rtx")
    monkeypatch.setattr("sdpl.kernels.gpu.look", lambda device_id: gpu)
    engine = build_engine(graph, spec("tensorrt:fp16"), Profile())
    assert len(engine.code) > 100_000
    assert engine.compute_capability == "86"
    version = tensorrt_rtx.__version__
    assert engine.built_with == {"tensorrt_rtx": version, "gpu": "a GPU", "driver": "CUDA 13.0"}


def test_an_engine_for_a_later_minor_takes_the_kernel_of_an_earlier_one(package, monkeypatch, graph, tmp_path):
    gpu = Gpu("Jetson", "87", 24 << 30, "CUDA 13.0")
    package("tensorrt", "tensorrt_rtx")
    monkeypatch.setattr("sdpl.kernels.gpu.look", lambda device_id: gpu)
    monkeypatch.setattr(tensorrt_rtx.Builder, "build_serialized_network", lambda builder, network, config: b"engine")
    shutil.copy(graph, tmp_path / "encoder.onnx")
    made = write_gpu_files(
        tmp_path, {"encoder": "encoder.onnx"}, spec("tensorrt:fp16"), Profile(), lambda progress: None
    )
    assert made.fields["compute_capability"] == "87"
    assert [name for name in made.files if name.startswith("cubin")] == ["cubin.sm87"]
    assert (tmp_path / made.files["cubin.sm87"]).read_bytes() == cubin("86", "float16")


def test_an_interrupt_stops_the_build(monkeypatch, graph):
    """SIGINT while the library builds: it is told to stop, and KeyboardInterrupt comes after."""

    def interrupt_soon(line):
        threading.Timer(0, signal.raise_signal, [signal.SIGINT]).start()
        time.sleep(0.2)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, spec("rtx:sm86:fp16"), Profile(), interrupt_soon)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("fp16", True)])
def test_float32_engines_are_not_rounded_to_tf32(monkeypatch, graph, precision, allowed):
    """On by default, TF32 moves scores by six times what float32 may."""
    flags = []
    monkeypatch.setattr(
        tensorrt_rtx.Builder,
        "build_serialized_network",
        lambda builder, network, config: flags.append(config.get_flag(tensorrt_rtx.BuilderFlag.TF32)) or b"engine",
    )
    build_engine(graph, spec(f"rtx:sm86:{precision}"), Profile())
    assert flags == [allowed]
