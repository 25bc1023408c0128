"""The protocol over HTTP, against a real server."""

import base64
import io
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import binary_request, until

from sdpl.preprocess import preprocess

INFER = "/v2/models/model/infer"


def to_the_end(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def outputs_of(body: bytes, headers: dict[str, str]) -> dict[str, np.ndarray]:
    """The binary outputs of an answer."""
    split = int(headers["Inference-Header-Content-Length"])
    found, at = {}, split
    for entry in json.loads(body[:split])["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        found[entry["name"]] = np.frombuffer(body[at : at + size], np.float32).reshape(entry["shape"])
        at += size
    assert at == len(body)
    return found


def test_health_and_metadata(server, recognizer):
    assert server.get("/v2/health/live") == (200, {"live": True})
    status, ready = server.get("/v2/health/ready")
    assert status == 200
    assert ready["models"] == [{"name": "model", "version": "1", "state": "READY", "reason": ""}]
    assert server.get("/v2")[1]["name"] == "sdpl"
    metadata = server.get("/v2/models/model")[1]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
    assert tuple(metadata["sdpl"]["categories"]) == recognizer.categories
    assert "scores differ by at most" in metadata["sdpl"]["proof"]
    assert server.get("/v2/models/model/versions/1/config")[1]["max_batch_size"] == 16
    assert server.get("/v2/models/model/ready")[0] == 200


def test_binary_tensors_give_the_recognizer_s_scores_and_attention(server, recognizer, images):
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in ("attention", "scores")]
    body, headers = binary_request(images[:2], wanted)
    status, headers, answer = server.request("POST", INFER, body, headers)
    assert status == 200
    found = outputs_of(answer, headers)
    scores, attention = recognizer.attention(images[:2])
    np.testing.assert_allclose(found["scores"], scores, atol=1e-6)
    np.testing.assert_allclose(found["attention"], attention, atol=1e-6)


def test_json_tensors_nested_and_flat(server, recognizer, images):
    for data in (images[:1].tolist(), images[:1].ravel().tolist()):
        source = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": data}
        status, answer = server.post(INFER, {"id": "seven", "inputs": [source]})
        assert status == 200
        assert answer["id"] == "seven"
        np.testing.assert_allclose(answer["outputs"][0]["data"], recognizer.scores(images[:1])[0], atol=1e-6)


def test_encoded_images_in_binary_and_base64(server, recognizer, photo):
    expected = recognizer.scores(preprocess(photo, 64)[None])[0]
    text = base64.b64encode(photo).decode()
    status, answer = server.post(
        INFER, {"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [2], "data": [text, text]}]}
    )
    assert status == 200
    np.testing.assert_allclose(answer["outputs"][0]["data"][: len(expected)], expected, atol=1e-6)
    raw = 2 * (struct.pack("<I", len(photo)) + photo)
    source = {"name": "jpeg", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [source]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    status, _, body = server.request("POST", INFER, head + raw, length)
    assert status == 200
    np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"][len(expected) :], expected, atol=1e-6)


def test_labels_and_classification(server, recognizer, images):
    wanted = [{"name": "labels"}, {"name": "scores", "parameters": {"classification": 3}}]
    body, headers = binary_request(images[:1], wanted, threshold=0.0, top_k=2)
    _, _, answer = server.request("POST", INFER, body, headers)
    labels, best = json.loads(answer)["outputs"]
    scores = recognizer.scores(images[:1])[0]
    order = np.argsort(-scores)
    assert labels["shape"] == [1, 2]
    assert [int(text.split(":")[1]) for text in labels["data"]] == order[:2].tolist()
    assert best["data"][0].endswith(f":{order[0]}:{recognizer.categories[order[0]]}")
    assert best["shape"] == [1, 3]


def test_recognize_takes_a_body_and_a_form(server, recognizer, photo):
    status, answer = server.post("/recognize?attention=1&threshold=0", photo)
    assert status == 200
    expected = recognizer.scores(preprocess(photo, 64)[None])[0]
    np.testing.assert_allclose([answer["scores"][name] for name in recognizer.categories], expected, atol=1e-6)
    assert [label["name"] for label in answer["labels"]] == list(answer["scores"])
    assert len(answer["attention"]["maps"]["one"]) == 4
    form = b'--B\r\nContent-Disposition: form-data; name="x"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--B--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    status, _, body = server.request("POST", "/recognize", form, kind)
    assert status == 200
    assert json.loads(body)["scores"] == answer["scores"]


def test_recognize_refuses_parameters_that_it_does_not_have(server, photo):
    status, answer = server.post("/recognize?topk=3", photo)
    assert (status, answer["error"]) == (400, "no parameter 'topk': did you mean 'top_k'?")
    for number in ("0", "x", "11", "9" * 5000):
        status, answer = server.post(f"/recognize?top_k={number}", photo)
        assert status == 400
        assert "expected a whole number from 1 to 10" in answer["error"]
    status, answer = server.post("/recognize?labels", photo)
    assert (status, answer["error"]) == (400, "no parameter 'labels': known: attention, model, threshold, top_k")


def test_chunked_bodies_and_expect_continue(server, photo):
    connection = server.connect()
    pieces, chunked = iter([photo[:1000], photo[1000:]]), {"Transfer-Encoding": "chunked"}
    connection.request("POST", "/recognize", pieces, chunked, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        head = f"POST /recognize HTTP/1.1\r\nHost: a\r\nContent-Length: {len(photo)}\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(photo)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_who_reads_no_answers_is_not_read_from_and_goes_on_when_it_does(server):
    pids = server.children("frontend")
    before, count = memory_mb(pids), 20_000
    sent: list[int] = []

    def send() -> None:
        for _ in range(count // 1000):
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
            sent.append(1000)

    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as sock:
        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(1)
        assert memory_mb(pids) < before + 50  # the answers are 180 MB
        answers, tail = 0, b""
        while answers < count:
            data = tail + sock.recv(1 << 20)
            answers += data.count(b"HTTP/1.1 200 OK")
            tail = data[-14:]
        sending.join()
    assert sum(sent) == count


def memory_mb(pids: list[int]) -> float:
    status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(kb) for kb in re.findall(r"RssAnon:\s+(\d+)", status)) / 1024


def test_requests_that_follow_each_other_on_one_connection(server, photo):
    head = f"POST /recognize HTTP/1.1\r\nHost: a\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
    get = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(get + head + photo + get + get)
        received = b""
        while received.count(b"HTTP/1.1 200") < 4:
            received += sock.recv(65536)
    assert received.count(b'"live": true') == 3


def test_thousands_of_refused_requests_in_one_piece_and_a_good_one_behind_them(server):
    wrong = b"POST /v3 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as sock:
        sender = threading.Thread(target=sock.sendall, args=(3000 * wrong + b"GET /v2 HTTP/1.1\r\n\r\n",))
        sender.start()
        received = b""
        while b"HTTP/1.1 200" not in received:
            data = sock.recv(1 << 20)
            assert data, received[-300:]
            received += data
        sender.join()
    assert received.count(b"HTTP/1.1 404") == 3000


def test_the_caller_s_ids_come_back(server):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, headers, _ = server.request("GET", "/v2", headers={"X-Request-Id": "abc", "Traceparent": trace})
    assert headers["x-request-id"] == "abc"
    assert headers["traceparent"] == trace


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        ({"inputs": []}, 400, "expected one input"),
        ({"inputs": [{"name": "imag", "shape": [1]}]}, 400, "did you mean 'image'?"),
        ({"inputs": 5}, 400, "'inputs' must be a list"),
        (
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64, 64, 3]}]},
            400,
            "expected UINT8 [B,64,64,3]",
        ),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 64, 64]}]}, 400, "got UINT8 [1, 64, 64]"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [0, 64, 64, 3]}]}, 400, "expected UINT8"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]}, 400, "whole numbers"),
        (
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [300] * 12288}]},
            400,
            "0..255",
        ),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [1, 2]}]}, 400, "12288"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3]}]}, 400, "neither data nor"),
        ({"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [1], "data": ["%"]}]}, 400, "no base64"),
        ({"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [2], "data": ["AAAA"]}]}, 400, "holds 1"),
        ({"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}]}, 400, "is not an image"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [100000, 64, 64, 3], "data": []}]}, 413, "holds"),
    ],
)
def test_wrong_requests_get_one_line(server, change, status, line):
    code, answer = server.post(INFER, change)
    assert code == status
    assert line in answer["error"]


def test_sizes_that_lie(server, images):
    body, headers = binary_request(images[:1])
    for wrong, line in (
        (body[:-1], "binary_data_size says 12288 bytes, 12287 follow"),
        (body + b"x", "12289 follow"),
    ):
        status, _, answer = server.request("POST", INFER, wrong, headers)
        assert status == 400
        assert line in json.loads(answer)["error"]
    for length in ("9999999", "-1", "x", "0", "1\u00b2"):
        status, _, answer = server.request("POST", INFER, body, {"Inference-Header-Content-Length": length})
        assert status == 400, length


def test_unknown_paths_methods_models_and_versions(server):
    assert server.get("/v3")[0] == 404
    assert server.get("/v2/models/modle")[1]["error"].endswith("did you mean 'model'?")
    assert server.get("/v2/models/model/versions/2")[0] == 404
    assert server.post("/v2", {})[0] == 405
    assert server.post("/v2/repository/models/model/unload", {})[0] == 403
    assert server.get("/../../etc/passwd")[0] == 404


@pytest.mark.parametrize(
    "head",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /recognize HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /recognize HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST /recognize HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /recognize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000,
    ],
)
def test_malformed_heads_are_refused_and_the_connection_ends(server, head):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(head)
        received = to_the_end(sock)
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_a_caller_that_goes_on_sending_reads_why_it_was_refused(server):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(20):
            sock.sendall(b"a" * 5_000)
            time.sleep(0.01)
        received = to_the_end(sock)
    assert received.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("head", [b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET /v2 HTTP/1.0\r\n\r\n"])
def test_a_connection_ends_when_the_caller_says_so(server, head):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(head)
        received = to_the_end(sock)
    assert b"connection: close" in received


def test_an_offer_of_another_protocol_is_not_taken_up(server, photo):
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
    assert server.request("GET", "/v2/health/live", headers=offer)[0] == 200
    assert server.request("POST", "/recognize", photo, offer)[0] == 200
    status, _, body = server.request("POST", "/recognize", iter([photo]), offer | {"Transfer-Encoding": "chunked"})
    assert status == 400
    assert b"Upgrade" in body


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(b"POST /recognize HTTP/1.1\r\nContent-Length: 10000000000\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 413")


LENGTH, CHUNKS = b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
MEGABYTES = b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000)
ASKING = b"Expect: 100-continue\r\n" + LENGTH


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        *[("GET", path, 200) for path in ("/", "/v2", "/v2/health/live", "/metrics", "/v2/models/model/ready")],
        ("GET", "/nowhere", 404),
        ("HEAD", "/v2", 200),
        ("DELETE", "/v2/models/model", 405),
        ("OPTIONS", "/recognize", 405),
    ],
)
def test_a_body_that_nobody_wants_is_dropped(server, method, path, expected):
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode()
    live = b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"
    for body, in_two in ((LENGTH, False), (LENGTH, True), (MEGABYTES, True), (ASKING, False)):
        received = talk(server, [head, body + live] if in_two else [head + body + live])
        assert received.startswith(b"HTTP/1.1 %d" % expected)
        assert received.endswith(b'{"live": true}')  # the connection goes on
    assert talk(server, [head + CHUNKS]).startswith(b"HTTP/1.1 %d" % expected)
    end = ASKING.index(b"abc")
    asked = talk(server, [head + ASKING[:end]])
    assert asked.startswith(b"HTTP/1.1 %d" % expected)  # and not 100: nobody waits for the body
    assert b"connection: close" in asked
    assert not any("Traceback" in line for line in server.lines)


def talk(server, pieces: list[bytes]) -> bytes:
    """All that a server sends back until it closes, or says that it will."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(0.02 * (len(pieces) > 1))  # so that the server reads it alone
        received = b""
        while data := sock.recv(65536):
            received += data
            head, _, rest = received.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
            if b"connection: close" in head and rest:
                return received
        return received


def test_an_image_with_too_many_pixels_is_refused(server):
    stream = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(stream, "PNG")
    status, answer = server.post("/recognize", stream.getvalue())
    assert status == 400
    assert "pixels" in answer["error"]


def test_a_request_whose_deadline_has_passed_is_dropped(server, images):
    body, headers = binary_request(images[:1], timeout=1)
    status, _, answer = server.request("POST", INFER, body, headers)
    assert status == 504
    assert "deadline" in json.loads(answer)["error"]


def test_counters_add_up_over_front_ends(server, photo):
    name = 'sdpl_requests_http_total{model="model"}'
    before = server.metric(name)
    for _ in range(8):
        server.post("/recognize", photo)
    until(lambda: server.metric(name) == before + 8)  # an answer goes out before it is counted
    assert server.metric('sdpl_in_hand{model="model"}') == 0
    statistics = server.get("/v2/models/model/stats")[1]["model_stats"][0]
    assert statistics["inference_count"] >= 8
    assert statistics["inference_stats"]["compute_infer"]["ns"] > 0


def test_metrics_are_what_prometheus_reads(server):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client reads the text format")
    _, headers, body = server.request("GET", "/metrics")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    assert families["sdpl_run_seconds"].type == "histogram"
    assert families["sdpl_requests_http"].type == "counter"
    assert server.metric('sdpl_model_ready{model="model"}') == 1
    assert server.metric("sdpl_restarts_total") == 0


def test_a_caller_that_goes_away_leaves_no_slot_taken(server, images):
    body, headers = binary_request(images[:1])
    head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    for sent in (len(body) // 2, len(body)):
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
            sock.sendall(head.encode() + body[:sent])

    def stays_free() -> bool:
        """Not for a moment only, before the second request was noticed."""
        for _ in range(10):
            if server.metric('sdpl_in_hand{model="model"}') != 0:
                return False
            time.sleep(0.05)
        return True

    until(stays_free)
