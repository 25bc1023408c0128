"""The protocol over gRPC, against a real server."""

from pathlib import Path

import grpc
import numpy as np
import pytest

import sdpl.server
from sdpl.preprocess import preprocess
from sdpl.server.messages import HEALTH, SERVICE, message, methods, split
from sdpl.server.refusal import RefusalError

Request = message("ModelInferRequest")


@pytest.fixture(scope="module")
def call(server):
    """call("ModelInfer", request, timeout=...) -> response."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:

        def run(method: str, request=None, service: str = SERVICE, **options):
            asked, answered = methods(service)[method]
            stub = channel.unary_unary(f"/{service}/{method}", asked.SerializeToString, answered.FromString)
            return stub(asked() if request is None else request, timeout=options.pop("timeout", 30), **options)

        yield run


def infer_request(images: np.ndarray, *outputs: str):
    request = Request(model_name="model", id="x")
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def floats(response, i: int) -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[i], np.float32).reshape(response.outputs[i].shape)


def test_health_metadata_and_configuration(call):
    assert call("ServerLive").live
    assert call("ServerReady").ready
    assert call("ModelReady", message("ModelReadyRequest")(name="model")).ready
    assert call("ServerMetadata").name == "sdpl"
    metadata = call("ModelMetadata", message("ModelMetadataRequest")(name="model"))
    assert list(metadata.inputs[0].shape) == [-1, 64, 64, 3]
    config = call("ModelConfig", message("ModelConfigRequest")(name="model")).config
    assert config.max_batch_size == 16
    assert [model.state for model in call("RepositoryIndex").models] == ["READY"]
    assert call("ModelStatistics").model_stats[0].name == "model"


@pytest.mark.parametrize("service", ["", SERVICE, "model"])
def test_grpc_s_own_health_check(call, service):
    asked, _ = methods(HEALTH)["Check"]
    answer = call("Check", asked(service=service), service=HEALTH)
    assert answer.SerializeToString() == b"\x08\x01"  # SERVING, as everyone has it


def test_grpc_s_own_health_check_of_nothing_known(call):
    asked, _ = methods(HEALTH)["Check"]
    with pytest.raises(grpc.RpcError) as refused:
        call("Check", asked(service="birds"), service=HEALTH)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_raw_tensors_give_the_recognizer_s_scores_and_attention(call, recognizer, images):
    response = call("ModelInfer", infer_request(images[:3], "scores", "attention"))
    scores, attention = recognizer.attention(images[:3])
    assert response.id == "x"
    np.testing.assert_allclose(floats(response, 0), scores, atol=1e-6)
    np.testing.assert_allclose(floats(response, 1), attention, atol=1e-6)


def test_typed_contents_and_encoded_images(call, recognizer, images, photo):
    request = Request(model_name="model")
    request.inputs.add(name="image", datatype="UINT8", shape=images[:1].shape)
    request.inputs[0].contents.uint_contents.extend(images[0].ravel().tolist())
    np.testing.assert_allclose(floats(call("ModelInfer", request), 0), recognizer.scores(images[:1]), atol=1e-6)
    request = Request(model_name="model")
    request.inputs.add(name="jpeg", datatype="BYTES", shape=[1])
    request.inputs[0].contents.bytes_contents.append(photo)
    expected = recognizer.scores(preprocess(photo, 64)[None])
    np.testing.assert_allclose(floats(call("ModelInfer", request), 0), expected, atol=1e-6)


def test_labels_with_parameters(call, images):
    request = infer_request(images[:1], "labels")
    request.parameters["threshold"].double_param = 0.0
    request.parameters["top_k"].int64_param = 1
    (raw,) = call("ModelInfer", request).raw_output_contents
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert raw[4:].count(b":") == 2


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        (lambda r: setattr(r, "model_name", "modle"), "NOT_FOUND", "did you mean 'model'?"),
        (lambda r: setattr(r, "model_version", "3"), "NOT_FOUND", "only version 1"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP32"), "INVALID_ARGUMENT", "expected UINT8"),
        (lambda r: r.inputs[0].shape.append(1), "INVALID_ARGUMENT", "expected UINT8"),
        (lambda r: r.raw_input_contents.append(b"x"), "INVALID_ARGUMENT", "2 raw_input_contents"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"xyz"), "INVALID_ARGUMENT", "got 3"),
        (lambda r: r.outputs.add(name="scors"), "INVALID_ARGUMENT", "did you mean 'scores'?"),
        (lambda r: r.ClearField("raw_input_contents"), "INVALID_ARGUMENT", "uint_contents"),
        (lambda r: r.parameters["timeout"].CopyFrom(message("InferParameter")(int64_param=1)), "DEADLINE_EXCEEDED", ""),
    ],
)
def test_wrong_requests_get_their_code_and_one_line(call, images, change, code, line):
    request = infer_request(images[:1])
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        call("ModelInfer", request)
    assert caught.value.code().name == code
    assert line in caught.value.details()


def test_bytes_that_are_no_message(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff" * 50, b"\x3a\xff\xff\xff\x7fabc", b"\x0b"):
            with pytest.raises(grpc.RpcError) as caught:
                stub(data, timeout=10)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_taking_a_message_apart_changes_nothing(images):
    request = infer_request(images[:2], "scores", "labels")
    request.parameters["threshold"].double_param = 0.25
    rest, raw = split(request.SerializeToString())
    assert [bytes(part) for part in raw] == list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    assert Request.FromString(rest) == request
    for cut in (1, 20, 5000):
        with pytest.raises(RefusalError):
            split(infer_request(images[:1]).SerializeToString()[:-cut])


def test_the_committed_descriptor_is_the_proto_compiled(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools compiles the .proto")
    folder = Path(sdpl.server.__file__).parent
    made = tmp_path / "made.binpb"
    words = ["", f"-I{folder}", f"--descriptor_set_out={made}", "inference.proto", "health.proto"]
    assert protoc.main(words) == 0
    assert made.read_bytes() == (folder / "inference.binpb").read_bytes()
