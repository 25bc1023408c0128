"""`sdpl-bench --url`: load on a real server."""

import json

import pytest


def test_closed_and_open_loops_of_a_server_beside_direct_calls(server, bundle, sdpl, tmp_path):
    words = ("--callers", "1,4", "--rates", "20", "--seconds", "0.3", "--batch", "1", "--threads", "1")
    url = ("--url", f"http://127.0.0.1:{server.http_port}")
    result = sdpl("bench", *url, bundle, *words, "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "b.json").read_text())
    assert [load["callers"] for load in found["loads"]] == [1, 4, None]
    assert found["loads"][2]["offered_per_s"] == 20
    for load in found["loads"]:
        assert load["answered"] > 0
        assert (load["refused"], load["errors"], load["unsent"]) == (0, 0, 0)
        assert load["p50_ms"] <= load["p95_ms"] <= load["p99_ms"]
    assert found["direct"]["latencies"][0]["boundary"] == "model"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_encoded_images(server, sdpl):
    result = sdpl("bench", "--url", f"http://127.0.0.1:{server.http_port}", "--input", "jpeg", "--seconds", "0.2")
    assert result.exit_code == 0, result.output
    assert "1 callers" in result.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "give a BUNDLE to measure, or the --url of a server"),
        (("--url", "ftp://x"), "expected http://HOST:PORT"),
        (("--url", "http://127.0.0.1:1"), "no server answers there"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(fails, words, line):
    assert line in fails("bench", *words)


def test_a_model_that_is_not_served_is_told(server, fails):
    url = f"http://127.0.0.1:{server.http_port}"
    assert "did you mean 'model'" in fails("bench", "--url", url, "--model", "modell")
