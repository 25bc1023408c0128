"""A recognizer that its process has used, in a forked child: no threads of the parent are there."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.pipeline import Decoder, stream
from sdpl.runtime import Recognizer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on, of threads and fork
]
TARGETS = [("cpu:fp32", 1), ("cpu:fp32", 2), ("openvino:fp32", 1), ("openvino:fp32", 2)]


def in_a_child(work, seconds=30):
    """Whether `work` is true in a forked child; it is killed, and that is False, when it takes too long."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 1
        except BaseException as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(status)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@pytest.mark.parametrize(("target", "streams"), TARGETS)
def test_a_recognizer_in_a_forked_child(cpu_bundle, scenes, target, streams):
    photos = sorted((scenes / "test").iterdir())
    try:
        recognizer = Recognizer.open(cpu_bundle, target, threads=streams, streams=streams)
    except UserError as error:
        pytest.skip(str(error))
    with recognizer:
        expected = recognizer.recognize(photos)
        assert in_a_child(lambda: recognizer.recognize(photos) == expected)
        assert in_a_child(lambda: in_a_child(lambda: recognizer.recognize(photos) == expected))
        assert in_a_child(lambda: recognizer.close() is None)
        assert recognizer.recognize(photos) == expected
    assert in_a_child(lambda: refused(lambda: recognizer.recognize(photos), "this recognizer is closed"))


def refused(call, words):
    try:
        call()
    except RuntimeError as error:
        return words in str(error)
    return False


def test_a_child_ends_by_itself(cpu_bundle, images):
    """Nothing that it inherits is waited for at its end."""
    code = f"""
import os, sys, numpy as np
from sdpl import Recognizer
recognizer = Recognizer.open({str(cpu_bundle)!r}, "cpu:fp32")
recognizer.scores(np.zeros((4, {images.shape[1]}, {images.shape[1]}, 3), np.uint8))
sys.exit(0 if os.fork() == 0 else os.wait()[1])
"""

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_stream_that_was_begun_before_the_fork_is_refused():
    with Decoder(workers=2) as decoder:
        load = lambda number: np.full((2, 2, 3), number, np.uint8)  # noqa: E731
        results = stream(decoder, range(100), load, lambda images: images, 4)
        next(results)
        assert in_a_child(lambda: refused(lambda: list(results), "begun before the process was forked"))
        assert len(list(results)) == 99
        assert in_a_child(lambda: len(list(stream(decoder, range(9), load, lambda images: images, 4))) == 9)
