"""Loading, unloading and replacing models in every order: first the thread's side alone, then a real server."""

import contextlib
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from serving import INFER, Callers, binary_request, replace, serving, until, with_manifest

from sdpl.errors import UserError
from sdpl.server import loading
from sdpl.server.loading import Loading
from sdpl.server.serving import Serving, make_ready
from sdpl.server.settings import Settings


class Maker:
    """Makes the real bundle ready, when it is let; keeps what it made."""

    def __init__(self, bundle):
        self._bundle = bundle
        self.begun, self.go, self.made = threading.Semaphore(0), threading.Semaphore(0), []
        self.error: UserError | None = None

    def __call__(self, model: int) -> Serving:
        self.begun.release()
        assert self.go.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        self.made.append(make_ready(str(self._bundle), Settings({"model": str(self._bundle)}, threads=1)))
        return self.made[-1]


@pytest.fixture
def maker(bundle):
    made = Maker(bundle)
    yield made
    for serving_ in made.made:
        serving_.recognizer.close()


@pytest.fixture
def models(maker):
    """A Loading of one model, and `through()`: what has come of the next job that is through."""
    through = threading.Semaphore(0)
    opened = Loading(maker, through.release)
    opened.start()

    def wait():
        assert through.acquire(timeout=60)
        return opened.finished()

    return opened, wait


def test_a_model_unloaded_while_it_is_loading_stays_so(models, maker):
    loading_, wait = models
    told: list[str] = []
    loading_.load(0, told.append)
    assert maker.begun.acquire(timeout=60)
    loading_.unload(0)
    assert told == [loading.UNLOADED]
    loading_.replaced(0)  # nor does a new bundle on disk bring it back
    maker.go.release()
    assert wait() == []
    with pytest.raises(RuntimeError, match="closed"):
        maker.made[0].recognizer.scores(np.zeros((1, 64, 64, 3), np.uint8))
    assert loading_.next_retry is None


def test_a_model_unloaded_after_it_was_loaded_but_before_that_was_seen(models, maker):
    loading_, wait = models
    loading_.load(0)
    maker.go.release()
    until(lambda: maker.made)
    loading_.unload(0)
    assert wait() == []


def test_loaded_again_after_unloading_it_is_read_anew(models, maker):
    loading_, wait = models
    told: list[str] = []
    loading_.load(0)
    assert maker.begun.acquire(timeout=60)
    loading_.unload(0)
    loading_.load(0, told.append)
    maker.go.release(2)
    jobs = wait() or wait()
    assert [job.model for job in jobs] == [0]
    jobs[0].tell("")
    assert told == [""]
    assert jobs[0].result is maker.made[1]


def test_many_who_ask_for_one_that_waits_get_one_reading(models, maker):
    loading_, wait = models
    loading_.load(0)
    assert maker.begun.acquire(timeout=60)
    told: list[str] = []
    for _ in range(5):
        loading_.load(0, told.append)
    maker.go.release(10)
    first, second = wait(), wait()
    assert len(first) + len(second) == 2
    for job in first + second:
        job.tell("")
    assert told == [""] * 5
    assert len(maker.made) == 2


def test_a_retry_ends_with_unloading(models, maker, monkeypatch):
    monkeypatch.setattr(loading, "RETRY_S", 0.0)
    loading_, wait = models
    maker.error = UserError("damaged.")
    loading_.load(0)
    maker.go.release(2)
    assert [job.result for job in wait()] == ["damaged."]
    loading_.retry_later(0)
    assert loading_.next_retry is not None
    loading_.retry()
    assert [job.result for job in wait()] == ["damaged."]
    loading_.retry_later(0)
    loading_.unload(0)
    assert loading_.next_retry is None
    loading_.retry()
    assert loading_.finished() == []


@pytest.mark.slow
def test_orders_that_cross_on_a_server(bundle, tmp_path, images):
    own = shutil.copytree(bundle, tmp_path / "model.sdpl")
    body, headers = binary_request(images[:1])
    repository = "/v2/repository/models/model/"

    def state() -> str:
        return server.post("/v2/repository/index")[1][0]["state"]

    with serving(own, "--workers", "1", "--threads", "1", "--allow-repository") as server:
        crossed = 0
        for attempt in range(20):
            assert server.post(repository + "unload")[0] == 200
            loads: list[int] = []
            thread = threading.Thread(target=lambda loads=loads: loads.append(server.post(repository + "load")[0]))
            thread.start()
            time.sleep(0.01 * (attempt % 10))
            assert server.post(repository + "unload")[0] == 200
            thread.join(30)
            if loads == [400]:  # it was being loaded when it was unloaded
                time.sleep(0.5)
                assert state() == "UNAVAILABLE"
                crossed += 1
            if crossed == 3:
                break
        assert crossed
        assert server.post(repository + "unload")[0] == 200
        # neither a new bundle on disk nor a new engine process brings it back
        replace(own, lambda folder: with_manifest(folder, lambda c: c.update(thresholds=[0.25] * 10)))
        before = server.children("engine")
        os.kill(before[0], signal.SIGKILL)
        until(lambda: server.children("engine") not in ([], before))
        until(lambda: "on request" in server.post("/v2/repository/index")[1][0]["reason"])
        assert server.request("POST", INFER, body, headers)[0] == 503
        # the same bundle twice while the first of it still answers
        assert server.post(repository + "load")[0] == 200
        callers = Callers(server, *binary_request(np.repeat(images[:1], 16, axis=0)))
        until(lambda: len(callers.answers) > 3)
        for _ in range(5):
            assert server.post(repository + "unload")[0] == 200
            assert server.post(repository + "load")[0] == 200
        assert {status for status, _ in callers.stop()} <= {200, 503}
        assert server.request("POST", INFER, body, headers)[0] == 200
        assert not any("the engine failed" in line for line in server.lines)
        # a request whose JSON comes in while the model is swapped
        with contextlib.closing(server.connect()) as connection:
            connection.putrequest("POST", INFER)
            for name, value in (*headers.items(), ("Content-Length", len(body))):
                connection.putheader(name, value)
            connection.endheaders(body[:10])
            replace(own, lambda folder: with_manifest(folder, lambda c: c.update(thresholds=[0.75] * 10)))
            until(lambda: server.get("/v2/models/model")[1]["sdpl"]["thresholds"][0] == 0.75)
            connection.send(body[10:])
            assert connection.getresponse().status == 200
        assert server.stop() == 0
