"""The page of checked data: pictures of what was found, all counts, and never more than 2 MB."""

import re

import numpy as np
import pytest
from PIL import Image

from sdpl.data.check import DataCheck, Finding, check
from sdpl.data.images import LabelCounts, LabelledImages, count_labels
from sdpl.evaluate.report.data import (
    MOST_CELLS,
    MOST_FINDINGS,
    MOST_ITEMS,
    MOST_ROWS,
    MOST_SPLITS,
    category_rows,
    finding_cards,
    write_data_report,
)
from sdpl.evaluate.report.figures import positives_by_category
from sdpl.evaluate.report.page import counting_ticks

THUMB = r'<img src="data:image/jpeg;base64,[^"]+" alt="([^"]*)">'


@pytest.fixture
def photos(tmp_path):
    """Pictures of noise, which no JPEG makes small: photos(4) -> paths."""

    def make(count):
        paths = [tmp_path / f"{i}.jpg" for i in range(count)]
        for i, path in enumerate(paths):
            pixels = np.random.RandomState(i).randint(0, 256, (120, 120, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        return tuple(paths)

    return make


def write(path, splits, result):
    write_data_report(path, splits, result)
    return path.read_text(encoding="utf-8")


def test_findings_are_shown_by_images_of_them(photos, tmp_path):
    paths = photos(5)
    (tmp_path / "copy.jpg").write_bytes(paths[0].read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"x")
    train = np.array([[1, -1], [-1, 0], [0, 0], [-1, -1]], np.int8)
    val = np.array([[-1, 1], [1, -1], [1, 1]], np.int8)
    names = ("<b>cat</b>", "dog")
    splits = {
        "train & co": LabelledImages((*paths[:3], tmp_path / "bad.jpg"), train, names),
        "val": LabelledImages((*paths[3:], tmp_path / "copy.jpg"), val, names),
    }
    text = write(tmp_path / "r.html", splits, check(splits))
    parts = re.split(r"<h3>", text)[1:]
    shown = {re.search(r"</span> (.*)</h3>", part)[1]: re.findall(THUMB, part) for part in parts}
    assert shown == {
        "images that cannot be read: 1": [],
        "times the same picture in different splits: 1": ["0.jpg", "copy.jpg"],
        "categories without a known positive: 1": [],
        "images without any known label: 1": ["2.jpg"],
        "categories with positives here, but none in the training set: 1": ["3.jpg", "copy.jpg"],
    }
    (later,) = [part for part in parts if "none in the training set" in part]
    assert "Images that are labelled present:" in later
    assert "in val</p>" in later
    assert "train &amp; co" in text
    assert "<b>cat" not in text
    assert "bad.jpg: is not an image that can be read" in text
    assert "http:" not in text
    for anchor in re.findall(r'href="#([a-z-]+)"', text):
        assert f'id="{anchor}"' in text


def test_data_without_a_fault_says_so(photos, tmp_path):
    splits = {"train.csv": LabelledImages(photos(2), np.array([[1], [-1]], np.int8), ("cat",))}
    text = write(tmp_path / "r.html", splits, check(splits))
    assert "Nothing: every image can be read" in text
    assert "<h3>" not in text


def test_however_much_was_found_the_page_stays_under_2_mb(photos, tmp_path):
    paths = tuple(str(path) for path in photos(60))
    names = tuple(f"{c:05d}" + 495 * '"' for c in range(5000))  # the longest names, and every letter is escaped
    folder = "/".join(12 * [255 * '"'])
    many = tuple(f"{folder}/{i}.jpg" for i in range(100_000))
    examples = tuple(paths[i : i + 4] for i in range(24))
    splits, counts, findings = {}, {}, []
    for number in range(MOST_SPLITS + 2):
        name = f"{number}{folder}"
        splits[name] = LabelledImages((), np.zeros((1, len(names)), np.int8), names)
        counts[name] = [LabelCounts(own, 1_000_000, 1_000_000, 1_000_000) for own in names]
        findings += [Finding(kind == 3, "images", name, many, examples, "labelled") for kind in range(4)]
    result = DataCheck(counts, dict.fromkeys(splits, 1_000_000), findings)
    text = write(tmp_path / "r.html", splits, result)
    assert (tmp_path / "r.html").stat().st_size < 2_000_000
    assert text.count('class="level problem"') == len(splits)  # all of them, before any warning
    assert f"The first {MOST_FINDINGS} of {4 * len(splits)}." in text
    assert "2 more are not on this page" in text
    assert f"Shown are the {MOST_CELLS // (4 * MOST_SPLITS)} of 5,000 categories" in text
    assert len(re.findall(THUMB, text)) >= MOST_FINDINGS  # each has its share of the room
    assert "and 99,985 more, which --json writes down" in text


def test_of_many_categories_those_with_the_fewest_positives_are_in_the_table():
    counts = [LabelCounts(f"c{c}", c, 0, 0) for c in range(MOST_ROWS + 5)]
    rows = category_rows({"train": counts[::-1], "val": counts[::-1]}, MOST_ROWS)
    assert len(rows) == MOST_ROWS
    assert [name for name, _ in rows[:3]] == ["c0", "c1", "c2"]
    assert [name for name, _ in category_rows({"train": counts[:3][::-1]}, MOST_ROWS)] == ["c2", "c1", "c0"]


def test_pictures_that_do_not_fit_are_named_instead(photos):
    paths = tuple(str(path) for path in photos(40))
    items = tuple(f"item {i}" for i in range(40))
    findings = [Finding(False, "things", "train", items, tuple((path,) for path in paths[:24])) for _ in range(20)]
    for card in finding_cards(findings):
        assert 0 < len(card.examples) < MOST_ITEMS
        assert [e.title for e in card.examples] + list(card.items) == list(items[:MOST_ITEMS])


def test_the_curve_of_positives_is_ranked():
    labels = np.array([[1, 1, -1], [0, 1, -1]], np.int8)
    counts = count_labels(LabelledImages((), labels, ("a", "b", "c")))
    (axis,) = positives_by_category({"train": counts}).axes
    assert axis.lines[0].get_ydata().tolist() == [2, 1, 0]
    assert axis.get_yticks().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 0, []), (0.4, 8, [1, 2, 5]), (3, 31, [5, 10, 20]), (1, 45174, [1, 10, 100, 1000, 10000])],
)
def test_ticks_of_counts_can_be_read(low, high, ticks):
    assert counting_ticks(low, high) == ticks


def test_the_command_writes_it_and_refuses_a_folder_at_once(sdpl, fails, scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_test.json"
    assert (
        f"report: {tmp_path / 'r.html'}" in sdpl("data", "check", annotations, "--report", tmp_path / "r.html").stdout
    )
    assert "instances_test.json" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "is a folder; name a file in it" in fails("data", "check", tmp_path / "gone.csv", "--report", tmp_path)
