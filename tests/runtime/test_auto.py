"""What `auto` takes: the fastest that was measured, never a precision that nobody asked for."""

import json

import pytest

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.runtime import Recognizer, timings
from sdpl.runtime.backends import Wanted, candidates
from sdpl.runtime.timings import Timing, files_of, keep

pytestmark = pytest.mark.slow


@pytest.fixture
def timed(cpu_bundle):
    """timed(name=ms of one image, ...) -> the bundle with these times, of batches as slow as four images."""

    def write(**one_ms):
        bundle = Bundle.open(cpu_bundle)
        for name, ms in one_ms.items():
            target = name.replace("_", ":")
            keep(bundle, {target: Timing(files=files_of(bundle, target), one_ms=ms, batch=8, batch_ms=4 * ms)})
        return cpu_bundle

    return write


def first(bundle, **wanted):
    names, _, reason = candidates(Bundle.open(bundle), Wanted(**wanted))
    return names[0], reason


def test_one_of_many_that_is_left_is_not_called_the_only_one(cpu_bundle, bundle):
    assert first(bundle) == ("cpu:fp32", "the only one")
    assert first(cpu_bundle, name="openvino") == ("openvino:fp32", "the only one allowed that runs here")


def test_the_fastest_in_float32_is_taken(timed):
    bundle = timed(cpu_fp32=5, openvino_fp32=7, openvino_bf16=1, openvino_int8=1, cpu_int8=1)
    assert first(bundle) == ("cpu:fp32", "measured on this machine")
    assert first(timed(openvino_fp32=3)) == ("openvino:fp32", "measured on this machine")


def test_less_exact_ones_only_when_they_are_asked_for(timed):
    bundle = timed(cpu_fp32=5, openvino_fp32=6, openvino_bf16=2, openvino_int8=3, cpu_int8=1)
    assert first(bundle, precision="bf16")[0] == "openvino:bf16"
    assert first(bundle, precision="int8")[0] == "cpu:int8"
    assert first(bundle, name="openvino", precision="int8")[0] == "openvino:bf16"
    assert first(timed(cpu_fp32=0.5), precision="int8")[0] == "cpu:fp32"  # faster and more exact
    with Recognizer.open(bundle) as recognizer:
        assert recognizer.target == "cpu:fp32"
        assert recognizer.skipped["cpu:int8"] == "int8 is less exact than fp32: --precision int8 allows it"
    with Recognizer.open(timed(cpu_int8=0.1), "auto:int8") as recognizer:
        assert recognizer.target == "cpu:int8"


def test_several_streams_ask_for_throughput(timed):
    bundle = Bundle.open(timed(cpu_fp32=5))
    slow_alone = Timing(files=files_of(bundle, "openvino:fp32"), one_ms=6, batch=8, batch_ms=10)
    keep(bundle, {"openvino:fp32": slow_alone})
    assert first(bundle.path)[0] == "cpu:fp32"
    assert first(bundle.path, streams=2)[0] == "openvino:fp32"


def test_the_default_of_the_export_comes_first(sdpl, fails, checkpoint, scenes, tmp_path):
    words = ["export", checkpoint, "--out", tmp_path / "m.sdpl", "--target", "cpu:fp32", "--target", "cpu:int8"]
    words += ["--calibrate", scenes / "test"]
    assert "--default-target 'cpu:int7': did you mean 'cpu:int8'?" in fails(*words, "--default-target", "cpu:int7")
    assert sdpl(*words, "--default-target", "cpu:int8").exit_code == 0
    assert first(tmp_path / "m.sdpl") == ("cpu:int8", "the bundle's default")
    assert first(tmp_path / "m.sdpl", precision="fp32")[0] == "cpu:fp32"
    manifest = json.loads((tmp_path / "m.sdpl" / "manifest.json").read_text())
    (tmp_path / "m.sdpl" / "manifest.json").write_text(json.dumps(manifest | {"default_target": "cpu:bf16"}))
    with pytest.raises(UserError, match="the default target 'cpu:bf16' is none of its targets"):
        Bundle.open(tmp_path / "m.sdpl")


def test_an_export_without_target_takes_its_engine_where_that_runs(sdpl, checkpoint, tmp_path):
    result = sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl")
    assert result.output.endswith("--backend auto takes rtx:sm86:fp16 where it runs\n")
    assert first(tmp_path / "m.sdpl") == ("rtx:sm86:fp16", "the bundle's default")
    with Recognizer.open(tmp_path / "m.sdpl") as recognizer:  # no GPU here
        assert recognizer.target == "cpu:fp32"


def test_a_bundle_without_float32_gives_the_most_exact_it_has(cpu_bundle):
    manifest = json.loads((cpu_bundle / "manifest.json").read_text())
    manifest["targets"] = {n: t for n, t in manifest["targets"].items() if t["precision"] != "fp32"}
    (cpu_bundle / "manifest.json").write_text(json.dumps(manifest))
    assert first(cpu_bundle)[0] == "openvino:bf16"
    with pytest.raises(UserError, match="has nothing as exact as fp32: --precision bf16 takes what it has"):
        first(cpu_bundle, precision="fp32")


@pytest.mark.parametrize("spoil", ["machine", "file", "text"])
def test_times_of_another_machine_version_or_graph_do_not_count(timed, spoil, monkeypatch):
    path = timed(cpu_fp32=1, openvino_fp32=9)
    assert first(path)[0] == "cpu:fp32"
    if spoil == "machine":
        monkeypatch.setattr(timings, "fingerprint", lambda device: "another")
    elif spoil == "file":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["model.onnx"]["sha256"] = "0" * 64
        (path / "manifest.json").write_text(json.dumps(manifest))
    else:
        next((path / "cache").glob("timings-*.json")).write_text('{"machine": 3}')
    assert first(path) == ("openvino:fp32", "a guess: not measured on this machine, sdpl-verify measures it")


def test_verify_measures_and_says_what_auto_takes(sdpl, cpu_bundle):
    result = sdpl("verify", cpu_bundle)
    assert result.exit_code == 0, result.output
    found = timings.timings(Bundle.open(cpu_bundle))
    assert set(found) >= {"cpu:fp32", "cpu:int8", "openvino:fp32", "openvino:int8"}
    fastest = min(("cpu:fp32", "openvino:fp32"), key=lambda name: found[name].one_ms)
    assert f"auto takes {fastest} here" in result.stdout
    assert f"{fastest}: {found[fastest]}" in result.stdout
    with Recognizer.open(cpu_bundle) as recognizer:
        assert recognizer.target == fastest


def test_the_first_opening_measures_if_asked(cpu_bundle):
    with Recognizer.open(cpu_bundle, measure=True) as recognizer:
        found = timings.timings(recognizer.bundle)
        assert set(found) == {"cpu:fp32", "openvino:fp32"}  # what may be taken
        assert recognizer.target == min(found, key=lambda name: found[name].one_ms)
        assert recognizer.chosen == "measured on this machine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int9"], "int9"),
        (["--backend", "auto:int9"], "precision 'int9': did you mean 'int8'?"),
        (["--backend", "cpu:int8", "--precision", "fp32"], "--precision fp32: cpu:int8 is less exact; name one"),
        (["--backend", "openvino:fp16"], "backend 'openvino:fp16': did you mean 'openvino:"),
        (["--streams", "3000"], "--streams 3000: this process has"),
        (["--threads", "3000"], "--threads 3000: this process has"),
        (["--threads", "1", "--streams", "2"], "--streams 2: each needs a thread of its own, and --threads is 1"),
    ],
)
def test_wrong_wishes_are_named(sdpl, cpu_bundle, scenes, words, message):
    result = sdpl("predict", cpu_bundle, scenes / "test", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_every_command_and_every_result_names_the_target(sdpl, fails, cpu_bundle, checkpoint, scenes, tmp_path):
    photo, annotations = scenes / "test" / "000000.jpg", scenes / "annotations" / "instances_test.json"
    result = sdpl("predict", cpu_bundle, photo, "--json", "--backend", "cpu:int8")
    assert json.loads(result.stdout)["target"] == "cpu:int8"
    assert result.stderr.startswith("target: cpu:int8 (onnxruntime ")
    result = sdpl("eval", cpu_bundle, annotations, "--precision", "int8", "--json", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["target"] in result.stderr
    result = sdpl("bench", cpu_bundle, "--batch", "1", "--seconds", "0.01", "--streams", "1", "--precision", "bf16")
    assert "target: openvino:" in result.stdout
    with Recognizer.open(cpu_bundle, "openvino:int8") as recognizer:
        assert recognizer.recognize([photo])[0].target == "openvino:int8"
        assert {scored.target for _, scored in recognizer.stream([photo])} == {"openvino:int8"}
    assert "--precision needs a bundle" in fails("eval", checkpoint, annotations, "--precision", "int8")


@pytest.mark.parametrize(("name", "backend"), [("cuda", "onnxruntime-cuda"), ("rtx", "tensorrt-rtx")])
def test_a_kind_of_targets_is_told_as_its_backend(cpu_bundle, name, backend):
    with pytest.raises(UserError, match=f"backend '{name}': did you mean '{backend}'"):
        Recognizer.open(cpu_bundle, name)
