"""What a user may name as images."""

import io
import os

import pytest

from sdpl.errors import UserError
from sdpl.sources import expand


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.JPG", "x.txt", "deep/c.png", "deep/er/d.webp", "[odd].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_folders_and_globs_in_a_fixed_order(here):
    assert list(expand(["b.jpg", "gone.jpg"])) == ["b.jpg", "gone.jpg"]
    assert list(expand(["."])) == ["./[odd].jpg", "./a.JPG", "./b.jpg"]
    assert list(expand(["."], recursive=True)) == [*expand(["."]), "./deep/c.png", "./deep/er/d.webp"]
    assert list(expand(["*.jpg"])) == ["[odd].jpg", "b.jpg"]
    assert list(expand(["**/*.webp"])) == ["deep/er/d.webp"]
    assert list(expand(["deep/*"])) == ["deep/c.png"]  # not the folder "er"
    assert list(expand(["[odd].jpg"])) == ["[odd].jpg"]  # a file of that name goes before the pattern


def test_lists(here, monkeypatch):
    (here / "list.txt").write_text("one.jpg\r\n\n  two three.jpg\n")
    assert list(expand(["@list.txt"])) == ["one.jpg", "  two three.jpg"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff.jpg\n\xc3\xa9.jpg"), encoding="utf-8"))
    assert list(expand(["-"])) == [os.fsdecode(b"\xff.jpg"), "é.jpg"]
    (here / "list.txt").write_bytes(b"\xef\xbb\xbf\xff.jpg\n\xc3\xa9.jpg\n")
    assert list(expand(["@list.txt"])) == [os.fsdecode(b"\xff.jpg"), "é.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deep/er/*.jpg", "no file fits this pattern"),
        ("de*", "no file fits this pattern"),
        ("@gone.txt", "the list cannot be read"),
        ("@wide.txt", "@wide.txt: is not a text file with a path in each line; save it as UTF-8"),
        ("", "'' is an empty path"),
        ("-", "standard input is closed"),
        ("empty", "no images in this folder"),
    ],
)
def test_what_a_user_gets_wrong(here, text, message, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    (here / "wide.txt").write_text("a.jpg\n", encoding="utf-16")
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list(expand([text]))
