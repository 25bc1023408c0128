import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sdpl.cli import main
from sdpl.runtime.predict import picture_names


def test_lines(sdpl, bundle, scenes):
    result = sdpl("predict", bundle, scenes / "test", "--threshold", "0")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 8
    assert lines[0].startswith(str(scenes / "test" / "000000.jpg") + ": ")
    assert lines[0].count(",") == 9


def test_nothing_above_threshold_is_said(sdpl, bundle, scenes):
    photo = scenes / "test" / "000000.jpg"
    best = sdpl("predict", bundle, photo, "--top", "1").stdout.split(": ")[1].strip()
    line = sdpl("predict", bundle, photo, "--threshold", "1").stdout
    assert line == f"{photo}: nothing above threshold (best: {best})\n"


def test_top_k_and_json(sdpl, bundle, scenes):
    photo = scenes / "test" / "000001.jpg"
    top = sdpl("predict", bundle, photo, "--top", "3").stdout
    assert top.count(",") == 2
    row = json.loads(sdpl("predict", bundle, photo, "--json").stdout)
    assert row["image"] == str(photo)
    assert len(row["scores"]) == 10
    assert f"{next(iter(row['scores']))} " in top


def test_bad_images_are_named_and_the_others_still_done(sdpl, bundle, scenes, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    good = scenes / "test" / "000000.jpg"
    result = sdpl("predict", bundle, bad, good, tmp_path / "gone.png")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1
    first, *errors = result.stderr.splitlines()
    assert first.startswith("target: ")
    assert [e.split(":")[0] for e in errors] == ["error"] * 3
    assert "bad.jpg: is not an image" in errors[0]
    assert "gone.png: no such image" in errors[1]
    assert "2 of 3 images could not be read" in errors[2]


def test_attention_pictures(sdpl, bundle, scenes, tmp_path):
    result = sdpl("predict", bundle, scenes / "test", "--top", "2", "--attention", tmp_path / "maps")
    assert result.exit_code == 0
    assert result.stderr.endswith(f"written: {tmp_path / 'maps'}\n")
    pictures = sorted((tmp_path / "maps").iterdir())
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(8)]
    with Image.open(pictures[0]) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 2 * pixels.shape[0]  # the photo and two maps in a row
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_images_of_one_name_get_pictures_of_their_own(sdpl, bundle, scenes, tmp_path):
    same = [scenes / split / "000000.jpg" for split in ("train", "test")]
    sdpl("predict", bundle, *same, *same, "--attention", tmp_path / "maps")
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert names == ["test-000000.jpg.png", "train-000000.jpg.png"]


def test_names_of_pictures_are_each_an_image_s_own_in_any_order():
    paths = [Path(name) for name in ("a/x.jpg", "a/X.JPG", "b/x.jpg", "c/b/x.jpg", "b-x.jpg", "y.jpg", "b-y.png")]
    names = picture_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert names[5:] == ["y.png", "b-y.png"]
    assert picture_names(paths[::-1]) == names[::-1]
    long = picture_names([Path("é" * 126 + ".png"), Path("z" * 255)])
    assert all(len(name.encode()) <= 255 for name in long)


def test_a_picture_replaces_neither_another_nor_an_image(fails, bundle, scenes, tmp_path):
    with Image.open(scenes / "test" / "000000.jpg") as photo:
        photo.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for option in ("--save", "--attention"):
        message = fails("predict", bundle, tmp_path / "a.png", option, tmp_path)
        assert f"a picture would replace the image {tmp_path / 'a.png'}; name another folder" in message
    assert (tmp_path / "a.png").read_bytes() == before
    both = ["--save", tmp_path / "d", "--attention", f"{tmp_path}/./d"]
    assert "name two folders" in fails("predict", bundle, tmp_path / "a.png", *both)


def test_options_that_exclude_each_other(fails, sdpl, bundle, scenes, tmp_path):
    photo = scenes / "test" / "000000.jpg"
    assert "leave one of the two out" in fails("predict", bundle, photo, "--json", "--out", tmp_path / "a.csv")
    for option in (["--json"], ["--out", tmp_path / "a.csv"]):
        assert "--top is for printed lines and pictures" in fails("predict", bundle, photo, "--top", 2, *option)
    assert sdpl("predict", bundle, photo, "--top", 2, "--json", "--save", tmp_path / "d").exit_code == 0


def test_what_a_user_gets_wrong(fails, bundle, scenes, tmp_path):
    photo = scenes / "test" / "000000.jpg"
    assert "no such bundle" in fails("predict", tmp_path / "gone.sdpl", photo)
    assert "no images in this folder" in fails("predict", bundle, tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("predict", bundle, photo, "--attention", tmp_path / "file")


def test_tables(sdpl, fails, bundle, scenes, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    photo = scenes / "test" / "000000.jpg"
    for name in ("a.csv", "a.jsonl"):
        result = sdpl("predict", bundle, photo, bad, "--out", tmp_path / name)
        assert result.exit_code == 2
        assert result.stdout == ""
    row = json.loads(sdpl("predict", bundle, photo, "--json").stdout)
    good, wrong = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert (good["image"], good["labels"], good["error"]) == (str(photo), "|".join(row["labels"]), "")
    for name, score in row["scores"].items():
        assert float(good[name]) == pytest.approx(score, rel=1e-5)
    assert "is not an image" in wrong["error"]
    good, wrong = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert good == row
    assert "is not an image" in wrong["error"]
    assert "expected a name that ends in .csv or .jsonl" in fails("predict", bundle, photo, "--out", tmp_path / "a.txt")


def test_saved_pictures(sdpl, bundle, scenes, tmp_path):
    result = sdpl("predict", bundle, scenes / "test", "--save", tmp_path / "drawn", "--attention", tmp_path / "maps")
    assert result.exit_code == 0
    for name in (f"{i:06d}.png" for i in range(8)):
        with Image.open(tmp_path / "drawn" / name) as plain, Image.open(tmp_path / "maps" / name):
            assert plain.width > 400  # the photo, its bars, and the maps under them


def test_folders_of_folders_globs_lists_and_standard_input(sdpl, fails, bundle, scenes, tmp_path):
    photos = sorted((scenes / "test").iterdir())
    expected = sdpl("predict", bundle, *photos).stdout
    assert sdpl("predict", bundle, scenes / "test" / "*.jpg").stdout == expected
    (tmp_path / "list.txt").write_text("\n".join(map(str, photos)))
    assert sdpl("predict", bundle, f"@{tmp_path / 'list.txt'}").stdout == expected
    piped = CliRunner().invoke(main, ["predict", str(bundle), "-"], input="\n".join(map(str, photos)))
    assert piped.stdout == expected
    deep = sdpl("predict", bundle, scenes, "--recursive").stdout.splitlines()
    assert len(deep) == 32
    assert expected.splitlines() == [line for line in deep if "/test/" in line]
    assert "--recursive looks into its folders too" in fails("predict", bundle, scenes)
    assert "no images: the lists are empty" in fails("predict", bundle, f"@{write_blank(tmp_path)}")


def write_blank(folder):
    (folder / "blank.txt").write_text("\n")
    return folder / "blank.txt"
