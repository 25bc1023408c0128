"""A cache is whole, of exactly this key, or not used; a stopped filling goes on."""

import threading

import numpy as np
import pytest

import sdpl.train.features.cache as cache
from sdpl.errors import UserError
from sdpl.progress import Steps, silent
from sdpl.train.features.cache import hash_images, open_cache, within_float16

SHAPE = (4, 3)
DIGESTS = ("b", "a", "d", "c")
KEY = {"weights": "w1", "image size": "64", "view": "plain"}


def rows(start, stop):
    return np.arange(start, stop, dtype=np.float32)[:, None, None] * np.ones((1, *SHAPE), np.float32)


@pytest.fixture
def opened(tmp_path):
    """opened(key) -> the cache, and from which row on it was filled (None: not at all); `said` collects lines."""

    def run(key=KEY, digests=DIGESTS, fill=None, folder=tmp_path):
        asked = []

        def whole(start):
            asked.append(start)
            for row in range(start, len(set(digests))):
                yield rows(row, row + 1)

        result = open_cache(folder, key, digests, SHAPE, fill or whole, lambda said: run.said.append(said.step))
        return result, (asked or [None])[0]

    run.said = []
    return run


def test_rows_are_those_of_the_images(opened):
    found, start = opened()
    assert start == 0
    assert found.read([0]).dtype == np.float16
    for digest, row in found.row.items():
        assert (found.read([row]) == sorted(DIGESTS).index(digest)).all()


def test_is_read_the_second_time_whatever_the_order_of_the_images(opened):
    opened()
    found, start = opened(digests=("c", "a", "b", "d", "a"))
    assert start is None
    assert len(found.read(range(4))) == 4


@pytest.mark.parametrize("part", ["weights", "image size"])
def test_a_cache_of_something_else_is_never_used_and_said(opened, part):
    opened()
    _, start = opened({**KEY, part: "other"})
    assert start == 0
    (line,) = opened.said
    assert line.endswith(f"is not used: it was made with other {part}.")
    assert opened(digests=("a", "b", "x", "c"))[1] == 0
    assert opened.said[-1].endswith("with other images.")


def test_another_view_of_the_same_images_is_another_cache_without_a_word(opened):
    opened()
    assert opened({**KEY, "view": "view 1"})[1] == 0
    assert opened.said == []


def test_filling_goes_on_behind_the_last_whole_row(opened, tmp_path):
    def stops(start):
        yield rows(0, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(fill=stops)
    (partial,) = tmp_path.glob("*.partial")
    with open(partial, "ab") as stream:
        stream.write(b"half a row")
    found, start = opened()
    assert start == 2
    np.testing.assert_array_equal(found.read(range(4)), rows(0, 4))
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_cache_is_named(opened, tmp_path):
    opened()
    (path,) = tmp_path.glob("*.maps")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged .* delete it"):
        opened()


@pytest.mark.parametrize("name", ["*.maps", "*.sha256"])
def test_a_flipped_bit_is_found_when_its_row_is_read(opened, tmp_path, name):
    opened()
    (path,) = tmp_path.glob(name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found, _ = opened()
    found.read([0, 1, 2])
    with pytest.raises(UserError, match=r"row 3 is damaged \(hash differs\); delete it"):
        found.read([3])


def test_rows_that_a_power_cut_left_as_zeros_are_made_again(opened, tmp_path):
    def stops(start):
        yield rows(0, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(fill=stops)
    (partial,) = tmp_path.glob("*.partial")
    size = partial.stat().st_size
    with open(partial, "r+b") as stream:
        stream.seek(size // 3)
        stream.write(bytes(size - size // 3))
    found, start = opened()
    assert start == 1
    np.testing.assert_array_equal(found.read(range(4)), rows(0, 4))


def test_values_beyond_float16_are_refused():
    maps = np.ones((4, *SHAPE), np.float32)
    assert within_float16(65504 * maps) is not None
    for value in (1e6, np.inf, np.nan):
        with pytest.raises(UserError, match="overflow float16"):
            within_float16(value * maps)


def test_too_small_a_disk_is_said_before_anything_is_computed(opened, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("usage", (), {"free": 50}))
    with pytest.raises(UserError, match=r"the cache needs 0\.00 GB more and 0\.00 GB are free; free space"):
        opened(fill=lambda start: pytest.fail("was computed"))


def test_a_folder_that_cannot_be_is_named(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        opened(folder=tmp_path / "file")


def test_a_second_process_waits_for_the_first(opened):
    reached, go_on = threading.Event(), threading.Event()

    def slow(start):
        reached.set()
        assert go_on.wait(10)
        yield rows(0, 4)

    first = threading.Thread(target=opened, kwargs={"fill": slow})
    first.start()
    assert reached.wait(10)
    starts = []
    second = threading.Thread(target=lambda: starts.append(opened()[1]))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert starts == [None]


def test_hashes_are_of_the_content(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    digests = hash_images([tmp_path / n for n in "abc"], 2, Steps(silent, "hashing", 3))
    assert digests[tmp_path / "a"] == digests[tmp_path / "b"] != digests[tmp_path / "c"]
    with pytest.raises(UserError, match="cannot be read"):
        hash_images([tmp_path / "gone"], 1, Steps(silent, "hashing", 1))
