"""Images that end the process that decodes them, or take for ever: rows with an error, and the rest is scored once."""

import signal
import subprocess
import sys
import time

import crashing_decoder
import numpy as np
import pytest
from PIL import Image

from sdpl.errors import UserError
from sdpl.preprocess import preprocess
from sdpl.scale.isolated import Isolated

START = "from sdpl.cli import main; import sys; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return crashing_decoder.environment(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory, photos, write_tar):
    """Writes four shards of six photos; the bad contents take places in the second and third."""

    def write(*bad):
        folder = tmp_path_factory.mktemp("shards")
        data = [photo.read_bytes() for photo in photos]
        paths = []
        for i in range(4):
            members = [(f"{i}{k}.jpg", data[6 * i + k]) for k in range(6)]
            for k, content in enumerate(bad):
                if i in (1, 2):
                    members[2 * k] = (f"{i}{2 * k}.jpg", content)
            paths.append(write_tar(folder / f"{i}.tar", members))
        return paths

    return write


def score(environment, *words):
    return [sys.executable, "-c", START, "score", *map(str, words)]


def run(environment, *words):
    return subprocess.run(score(environment, *words), env=environment, capture_output=True, text=True)


def by_key(rows, out):
    return {key: row for (_, key), row in rows(out).items()}


@pytest.mark.slow
def test_only_their_rows_have_an_error(environment, bundle, shards, rows, tmp_path):
    bad = [b"SIGSEGV", b"SIGKILL"]
    result = run(environment, bundle, *shards(*bad), "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "4 of 4 shards, 24 images, 4 with an error" in result.stdout
    assert "going on, and back to that at the end" in result.stderr
    crashed = by_key(rows, tmp_path / "out")
    run(environment, bundle, *shards(b"is no image", b"is no image"), "--out", tmp_path / "plain")
    plain = by_key(rows, tmp_path / "plain")
    assert crashed.keys() == plain.keys()
    for key, row in crashed.items():
        if plain[key]["error"]:
            name = bad[int(key[1]) // 2].decode()
            expected = f"{key}.jpg: ends the process that decodes it ({name}) (2 tries, each in a process of its own)."
            assert row["error"].endswith(expected)
        else:
            assert row["scores"] == plain[key]["scores"]  # bit by bit
            assert row["error"] is None


@pytest.mark.slow
def test_one_that_takes_for_ever(environment, bundle, shards, rows, tmp_path):
    words = [bundle, *shards(b"FOREVER")[1:2], "--out", tmp_path / "out", "--image-timeout", "2"]
    result = run(environment, *words)
    assert result.returncode == 0, result.stderr
    assert "the process hung in the middle of shard 0" in result.stderr
    found = by_key(rows, tmp_path / "out")
    assert [key for key, row in found.items() if row["error"]] == ["10"]
    assert "takes too long to decode" in found["10"]["error"]


@pytest.mark.slow
def test_killed_beside_that_it_still_goes_on_exactly(environment, bundle, shards, rows, tmp_path):
    """The command is killed at several points while it works around such images."""
    tars = shards(b"SIGABRT")
    assert run(environment, bundle, *tars, "--out", tmp_path / "unbroken").returncode == 0
    words = [bundle, *tars, "--out", tmp_path / "out"]
    for shards_done in (1, 3):
        process = subprocess.Popen(score(environment, *words), env=environment, stderr=subprocess.PIPE)
        while process.poll() is None and len(list((tmp_path / "out").glob("shard-*"))) < shards_done:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run(environment, *words).returncode == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "unbroken")


def test_a_process_of_its_own_gives_the_same_pixels_and_errors(photos, tmp_path):
    isolated = Isolated(60)
    for photo in photos[:3]:
        np.testing.assert_array_equal(isolated.load(str(photo), "a", 64), preprocess(photo, 64))
        np.testing.assert_array_equal(isolated.load(photo.read_bytes(), "a", 64), preprocess(photo, 64))
    for image in (b"is no image", str(tmp_path / "gone.jpg")):
        with pytest.raises(UserError) as here:
            preprocess(image, 64)
        with pytest.raises(UserError) as there:
            isolated.load(image, "a", 64)
        assert str(here.value) == str(there.value)
    large = tmp_path / "large.png"
    Image.new("RGB", (3000, 2000)).save(large)
    assert isolated.load(str(large), "a", 448).shape == (448, 448, 3)
    isolated.close()
