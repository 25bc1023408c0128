import dataclasses
import os

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.server.arena import Arena, Geometry, Slots, fitting, make_memory
from sdpl.server.serving import make_ready
from sdpl.server.settings import MIB, Settings

GEOMETRY = Geometry(image_size=8, categories=5, map_size=(2, 3))


def test_two_processes_see_the_same_memory_and_slots_do_not_overlap():
    fd = make_memory(3, GEOMETRY)
    ours, theirs = Arena(fd, 3, GEOMETRY), Arena(fd, 3, GEOMETRY)
    os.close(fd)
    for slot in range(3):
        ours.images[slot] = slot + 1
        theirs.scores[slot] = slot + 10
        theirs.attention[slot] = slot + 20
    assert [int(image.min()) for image in theirs.images] == [1, 2, 3] == [int(image.max()) for image in theirs.images]
    np.testing.assert_array_equal(ours.scores[:, 0], [10, 11, 12])
    np.testing.assert_array_equal(ours.attention.max(axis=(1, 2, 3)), [20, 21, 22])
    assert ours.attention.shape == (3, 5, 2, 3)
    ours.bytes[GEOMETRY.image_bytes] = 77
    assert theirs.images[1, 0, 0, 0] == 77


def test_slots_are_neighbours_and_come_back():
    slots = Slots(4)
    assert slots.take(3) == 0
    assert slots.take(2) is None
    assert slots.take(1) == 3
    assert slots.take(1) is None
    slots.give_back(1, 2)
    assert slots.used == 2
    assert slots.take(2) == 1


@pytest.mark.parametrize("categories", [80, 10_000])
def test_results_count_as_memory_too(categories):
    geometry = Geometry(image_size=448, categories=categories, map_size=(7, 7))
    count = fitting(256 * MIB, geometry)
    fd = make_memory(count, geometry)
    assert 256 * MIB - geometry.slot_bytes - 3 * 4096 < os.fstat(fd).st_size <= 256 * MIB
    os.close(fd)


def test_a_server_with_too_little_memory_says_what_it_needs(bundle):
    settings = Settings({"model": str(bundle)}, workers=64, queue_bytes=MIB, threads=1)
    with pytest.raises(UserError, match=r"10 categories.*need --queue-mb 3 or more"):
        make_ready(str(bundle), settings)
    make_ready(str(bundle), dataclasses.replace(settings, queue_bytes=3 * MIB)).recognizer.close()
