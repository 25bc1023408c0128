"""Decoded in a bounded pool, batched, run, in order: whatever the source, and whatever is wrong with an image."""

import itertools
import threading
import time

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.pipeline import Decoder, available_cores, batched, read_ahead, run_groups, stream

SIDE = 4


def picture(number):
    """An image that says which it is; multiples of 7 cannot be read."""
    if number % 7 == 0:
        raise UserError(f"{number}: is damaged.")
    return np.full((SIDE, SIDE, 3), number % 256, np.uint8)


def first_pixels(images):
    return images[:, 0, 0, 0]


@pytest.fixture
def decoder():
    with Decoder(workers=3) as opened:
        yield opened


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_results_are_in_order_and_errors_take_their_image_s_place(decoder, batch_size):
    seen = list(stream(decoder, range(30), picture, first_pixels, batch_size))
    assert [source for source, _ in seen] == list(range(30))
    for source, row in seen:
        assert str(row) == f"{source}: is damaged." if source % 7 == 0 else row == source


def test_images_that_finish_out_of_order_do_not_change_the_batches(decoder):
    def slow_at_first(number):
        time.sleep(0.02 if number % 4 == 1 else 0)
        return picture(number)

    batches = []
    run = lambda images: batches.append(first_pixels(images).tolist()) or images  # noqa: E731
    list(stream(decoder, range(1, 13), slow_at_first, run, 4))
    assert batches == [[1, 2, 3, 4], [5, 6, 8], [9, 10, 11, 12]]  # a bad image leaves its place empty


def test_an_endless_source_is_read_only_a_little_ahead(decoder):
    sources = itertools.count(1)
    results = stream(decoder, sources, picture, first_pixels, 4)
    for _ in range(400):
        source, _ = next(results)
    assert next(sources) - source <= 4 + 2 * 3 + 2 * 4
    results.close()


def test_the_next_images_are_decoded_while_a_batch_runs(decoder):
    decoded, seen_by_first_run = threading.Event(), []

    def load(number):
        if number == 5:
            decoded.set()
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    def run(images):
        seen_by_first_run.append(decoded.wait(10))
        return images

    list(stream(decoder, range(1, 9), load, run, 4))
    assert seen_by_first_run[0]


def test_closing_it_cancels_what_has_not_begun():
    started = []
    gate = threading.Event()

    def load(number):
        started.append(number)
        if number > 4:
            gate.wait(10)
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    with Decoder(workers=1) as decoder:
        results = stream(decoder, range(1, 100), load, first_pixels, 4)
        next(results)
        results.close()
        gate.set()
    assert len(started) <= 6


def test_an_error_that_is_none_of_the_image_s_is_raised(decoder):
    def broken(number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream(decoder, range(3), broken, first_pixels, 2))


def test_nothing_gives_nothing_and_a_batch_of_bad_images_runs_nothing(decoder):
    assert list(stream(decoder, [], picture, first_pixels, 4)) == []
    run = lambda images: pytest.fail("there was nothing to run")  # noqa: E731
    assert [type(row) for _, row in stream(decoder, [0, 7, 14], picture, run, 2)] == [UserError] * 3


def test_batches_and_cores():
    assert list(batched("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert available_cores() >= 1


def test_groups_come_back_as_they_were_made(decoder):
    groups = [[1, 2, 7], [3], [8, 9]]
    ran = []
    run = lambda images: ran.append(first_pixels(images).tolist()) or first_pixels(images)  # noqa: E731
    found = list(run_groups(decoder, groups, picture, run))
    assert [[source for source, _ in group] for group in found] == groups
    assert ran == [[1, 2], [3], [8, 9]]


def test_reading_ahead_is_bounded_and_keeps_order_and_errors():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number
            if number == 50:
                raise ZeroDivisionError

    ahead = read_ahead(items(), 3)
    for number in range(10):
        assert next(ahead) == number
        assert len(made) <= number + 1 + 3 + 1
    with pytest.raises(ZeroDivisionError):
        list(ahead)
    assert made[-1] == 50


def test_closing_it_waits_for_the_end_of_the_reading_thread():
    """One that Python's end finds inside a C++ library aborts the process."""

    def slow():
        for number in itertools.count():
            time.sleep(0.05)
            yield number

    for items in (itertools.count(), slow()):
        ahead = read_ahead(items, 2)
        next(ahead)
        ahead.close()
        assert not any(thread.name == "sdpl-read" for thread in threading.enumerate())


def test_a_reading_thread_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr("sdpl.pipeline.MOST_WAITED", 0.01)
    released = threading.Event()

    def stuck():
        yield 1
        released.wait()

    ahead = read_ahead(stuck(), 2)
    next(ahead)
    ahead.close()
    released.set()
