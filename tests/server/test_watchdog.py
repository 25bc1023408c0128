"""Processes of the server that live and do not get on."""

import http.client
import os
import signal
import threading
import time

import crashing_decoder
import pytest
from serving import INFER, binary_request, serving, until

from sdpl.server.counters import Counters
from sdpl.server.watchdog import Decoding, Watchdog


def counters(row: int = 0) -> Counters:
    return Counters(Counters.memory(2, 1), 2, ["model"], row)


def test_a_process_that_gets_on_or_has_not_begun_does_not_hang():
    own = counters()
    watchdog = Watchdog(own, 3)
    for _ in range(10):
        assert watchdog.hung([0]) == []  # no word yet: it starts
    for i in range(1, 10):
        own.get_on(i)
        assert watchdog.hung([0]) == []


def test_a_process_hangs_after_so_many_looks_and_its_successor_is_counted_anew():
    own = counters()
    watchdog = Watchdog(own, 3)
    own.get_on(7)
    assert [watchdog.hung([0, 1]) for _ in range(7)] == [[], [], [], [0], [], [], [0]]
    own.clear_progress()
    assert all(watchdog.hung([0]) == [] for _ in range(10))


def test_a_batch_may_be_slower_than_it_was_measured():
    own = counters()
    watchdog = Watchdog(own, 1)
    own.get_on(1, allowed_s=4)
    assert [watchdog.hung([0]) for _ in range(5)] == [[], [], [], [], [0]]


def test_a_front_end_gets_on_unless_one_picture_does_not_end():
    own, times = counters(), iter(range(100, 200))
    decoding = Decoding(own, lambda: float(next(times)))
    decoding.beat()
    decoding.beat()
    assert own.progress(0)[0] == 101
    decoding.begin(1)  # at 102
    decoding.begin(2)
    decoding.end(2)
    for _ in range(3):
        decoding.beat()
        assert own.progress(0)[0] == 102
    decoding.end(1)
    decoding.beat()
    assert own.progress(0)[0] == 107


@pytest.mark.slow
def test_an_engine_and_a_decoder_that_hang_are_started_again(bundle, images, tmp_path):
    body, headers = binary_request(images[:1])
    variables = {"PYTHONPATH": crashing_decoder.environment(tmp_path)["PYTHONPATH"]}
    words = (bundle, "--workers", "1", "--threads", "1", "--hung-after-s", "2")
    with serving(*words, variables=variables) as server:
        time.sleep(3.5)  # idle is not hung
        (engine,), (front,) = server.children("engine"), server.children("frontend")
        os.kill(engine, signal.SIGSTOP)
        until(lambda: server.get("/v2/health/ready")[0] == 503)
        until(lambda: server.request("POST", INFER, body, headers)[0] == 200)
        assert server.children("frontend") == [front]
        assert server.children("engine") != [engine]
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(server.request("POST", "/recognize", b"FOREVER", {"Content-Type": "image/jpeg"}))
            except (OSError, http.client.HTTPException) as error:
                answers.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: server.children("frontend") not in ([front], []))
        asking.join()
        assert isinstance(answers[0], Exception), answers
        until(lambda: _answers(server, body, headers))
        assert server.metric('sdpl_in_hand{model="model"}') == 0
        assert any("engine 0 hangs: no progress for 2 s" in line for line in server.lines)
        assert any("frontend 0 hangs" in line for line in server.lines)


def _answers(server, body, headers) -> bool:
    try:
        return server.request("POST", INFER, body, headers)[0] == 200
    except OSError:  # nobody listens yet
        return False
