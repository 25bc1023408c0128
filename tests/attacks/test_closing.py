"""A recognizer that is closed while others use it."""

import threading

import numpy as np
import pytest

from sdpl.runtime import Recognizer


def test_closing_waits_for_calls_and_later_ones_are_told(bundle, images, monkeypatch):
    recognizer = Recognizer.open(bundle, threads=1)
    expected = recognizer.scores(images[:1])
    entered, go_on, seen = threading.Event(), threading.Event(), []
    original = recognizer.backend.infer

    def slow(outputs, batch):
        entered.set()
        assert go_on.wait(30)
        return original(outputs, batch)

    monkeypatch.setattr(recognizer.backend, "infer", slow)
    caller = threading.Thread(target=lambda: seen.append(recognizer.scores(images[:1])))
    caller.start()
    assert entered.wait(30)
    closer = threading.Thread(target=recognizer.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go_on.set()
    caller.join()
    closer.join()
    np.testing.assert_array_equal(seen[0], expected)
    with pytest.raises(RuntimeError, match="this recognizer is closed"):
        recognizer.scores(images[:1])
