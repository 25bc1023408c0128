"""Processes of the server that live and do not get on."""

import http.client
import os
import signal
import threading
import time

import crashing_decoder
import pytest
from click.testing import CliRunner
from serving import INFER, binary_request, serving, until

from sdpl.cli.serve import command
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


def test_a_look_in_the_middle_of_a_word_finds_no_hang(monkeypatch):
    own = counters()
    watchdog, plain = Watchdog(own, 3), own.set_server
    own.get_on(1, allowed_s=100)
    for _ in range(50):
        assert watchdog.hung([0]) == []
    found = []

    def look_behind(name: str, value: float) -> None:
        plain(name, value)
        found.extend(watchdog.hung([0]))

    monkeypatch.setattr(own, "set_server", look_behind)
    own.get_on(2)  # the long batch has ended
    own.get_on(2.5, allowed_s=100)
    assert found == []


@pytest.mark.parametrize("seconds", ["0.5", "1", "4.9"])
def test_a_time_in_which_an_idle_process_may_say_nothing_is_refused(seconds):
    result = CliRunner().invoke(command, ["model.sdpl", "--hung-after-s", seconds])
    assert result.exit_code == 2
    assert "too short to tell: 0 for never, or 5 and more" in " ".join(result.output.split())


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
    words = (bundle, "--workers", "1", "--threads", "1", "--hung-after-s", "5")
    with serving(*words, variables=variables) as server:
        time.sleep(6.5)  # idle is not hung
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
        assert any("engine 0 hangs: no progress for 5 s" in line for line in server.lines)
        assert any("frontend 0 hangs" in line for line in server.lines)


def _answers(server, body, headers) -> bool:
    try:
        return server.request("POST", INFER, body, headers)[0] == 200
    except OSError:  # nobody listens yet
        return False
