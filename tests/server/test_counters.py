import errno
import json
import os

import sdpl.server.log as log_module
from sdpl.server.counters import Counters
from sdpl.server.log import AccessLog


def pair(models: list[str]) -> tuple[Counters, Counters]:
    """The same counters as two processes see them."""
    fd = Counters.memory(2, len(models))
    return Counters(os.dup(fd), 2, models, row=0), Counters(fd, 2, models, row=1)


def test_processes_add_up_and_models_stay_apart():
    one, two = pair(["a", "b"])
    one.add(0, "images", 3)
    two.add(0, "images", 4)
    two.add(1, "images", 5)
    assert (one.total(0, "images"), two.total(1, "images")) == (7, 5)


def test_histograms_count_each_value_once_and_below_every_higher_bound():
    one, two = pair(["a"])
    for value in (0.0001, 0.001, 0.02, 1000):
        one.observe(0, "wait_seconds", value)
    two.observe(0, "wait_seconds", 0.02)
    counts, summed = one.histogram(0, "wait_seconds")
    assert sum(counts) == 5
    assert counts[-1] == 1
    assert abs(summed - 1000.0411) < 1e-9
    lines = list(one.to_prometheus())
    assert 'sdpl_wait_seconds_bucket{model="a",le="0.001"} 2' in lines
    assert 'sdpl_wait_seconds_bucket{model="a",le="+Inf"} 5' in lines


def test_a_process_that_is_started_again_keeps_its_counts_but_not_what_it_held():
    one, _ = pair(["a"])
    one.add(0, "images")
    one.add(0, "in_hand", 9)
    one.set(0, "last_inference_timestamp_seconds", 1795614084.125)
    one.clear_gauges()
    assert 'sdpl_last_inference_timestamp_seconds{model="a"} 1795614084.125' in list(one.to_prometheus())
    assert (one.total(0, "images"), one.total(0, "in_hand")) == (1, 0)


def test_a_log_that_is_renamed_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "LOOK_S", 0)
    path = tmp_path / "access.jsonl"
    log = AccessLog(str(path), pair(["a"])[0])
    log.write(status=1)
    path.rename(tmp_path / "access.jsonl.1")
    log.write(status=2)
    path.unlink()
    path.symlink_to(tmp_path / "gone" / "nowhere")  # cannot be opened: the old file goes on
    log.write(status=3)
    path.unlink()
    log.write(status=4)
    for file, status in ((tmp_path / "access.jsonl.1", 1), (path, 4)):
        assert json.loads(file.read_text())["status"] == status


def test_an_old_log_that_cannot_be_closed_well_fails_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "LOOK_S", 0)
    path, close = tmp_path / "access.jsonl", os.close
    log = AccessLog(str(path), pair(["a"])[0])
    path.unlink()

    def close_badly(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "lines were lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_badly)
        log.write(status=1)
    assert json.loads(path.read_text())["status"] == 1


def test_a_full_disk_loses_lines_and_counts_them():
    counters, _ = pair(["a"])
    log = AccessLog("/dev/full", counters)
    log.write(status=200)
    assert "sdpl_log_lines_lost_total 1" in list(counters.to_prometheus())
    assert not AccessLog(None, counters).on
