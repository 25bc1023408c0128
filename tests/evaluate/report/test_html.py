"""The report as a user makes it, through `sdpl-eval`."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from sdpl.data.formats import read_labels
from sdpl.data.images import LabelledImages
from sdpl.evaluate.evaluation import Evaluated, evaluate
from sdpl.evaluate.report.html import MOST_ROWS, CategoryRow, category_rows, shown_rows, threshold_counts, write_report
from sdpl.text import shortened

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Tags, the addresses they load from, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "srcset", "href", "data", "action")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", ["ckpt", "bundle"])
def test_one_file_that_needs_nothing_beside_it(sdpl, checkpoint, bundle, scenes, tmp_path, kind):
    model = {"ckpt": checkpoint, "bundle": bundle}[kind]
    out = tmp_path / "reports" / "r.html"
    annotations = scenes / "annotations" / "instances_test.json"
    result = sdpl("eval", model, annotations, "--report", out, "--worst", "2", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert f"report: {out}" in result.stdout
    assert [path.name for path in out.parent.iterdir()] == ["r.html"]
    text = out.read_text()
    page = Page(text)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"link", "iframe", "object", "form"} & set(page.tags)
    assert "url(" not in text
    assert "default-src 'none'" in text
    metrics = json.loads((tmp_path / "m.json").read_text())
    for name in ("mAP", "ece"):
        assert f"{metrics[name]:.1f}" in page.text
    for word in ("False positives", "False negatives", "seven", "OF1", "calibration", str(annotations), str(model)):
        assert word in page.text
    pictures = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert 2 * 2 <= len(pictures) <= 2 * 2 + 2 * 2 * 2  # photo and attention, of each sample and each error
    assert len(text) < 700_000
    figures = [address for address in page.addresses if address.startswith("data:image/svg")]
    assert (
        len(figures) == {"ckpt": 20, "bundle": 12}[kind]
    )  # light and dark, wide and narrow; beside the checkpoint is the run's log
    for figure in figures:
        ElementTree.fromstring(base64.b64decode(figure.split(",")[1]))


def test_no_pictures(sdpl, bundle, scenes, tmp_path):
    out = tmp_path / "r.html"
    words = ("eval", bundle, scenes / "annotations" / "instances_test.json", "--report", out, "--worst", "0")
    assert sdpl(*words).exit_code == 0
    assert "data:image/jpeg" not in out.read_text()


def write(folder, data, scores, thresholds, result=None):
    def attention(images):
        return None, np.full((len(images), len(data.categories), 2, 2), 0.25)

    model = Evaluated(None, attention, data.categories, 32, thresholds, "PyTorch")
    result = result or evaluate(scores, data, thresholds)
    write_report(folder / "r.html", "<b>model</b>", "labels & more", model, data, scores, result, 3)
    return (folder / "r.html").read_text()


def test_names_cannot_become_markup(scenes, tmp_path):
    full = read_labels(scenes / "annotations" / "instances_test.json")
    names = ("<script>alert(1)</script>", "$x^2$ & co", "猫", *full.categories[3:])
    data = LabelledImages(full.images, full.labels, names)
    text = write(tmp_path, data, np.random.RandomState(0).uniform(size=data.labels.shape), np.full(10, 0.5))
    assert "<script>alert" not in text
    assert "<b>model</b>" not in text
    page = Page(text)
    assert "<script>alert(1)</script>" in page.text
    assert "$x^2$ & co" in page.text
    figures = [base64.b64decode(a.split(",")[1]).decode() for a in page.addresses if a.startswith("data:image/svg")]
    assert not any("<script" in figure for figure in figures)
    assert any("$x^2$ &amp; co" in figure and "猫" in figure for figure in figures)


def test_unknown_labels_count_nowhere(scenes, tmp_path):
    full = read_labels(scenes / "annotations" / "instances_test.json")
    labels = full.labels.copy()
    labels[:, 0], labels[:, 1] = 0, -1  # nothing known; no positive
    data = full.with_labels(labels)
    scores = np.full(labels.shape, 0.1)
    scores[:, 0] = 0.99
    text = write(tmp_path, data, scores, np.linspace(0.3, 0.5, 10))
    assert "90.0 % of the labels known" in text
    assert "0.30 to 0.50, one per category" in text
    errors = text[text.index("False positives") : text.index("The five best")]
    assert ">zero<" not in errors
    assert re.search(r'class="fill unknown" style="width: 99.0%"', text)
    rows = category_rows(scores, data, np.full(10, 0.5), evaluate(scores, data))
    assert (rows[0].known, rows[0].unknown, rows[0].ap, rows[0].precision, rows[0].recall) == (0, 8, None, None, None)
    assert (rows[1].ap, rows[1].recall) == (None, None)
    assert rows[2].recall == 0


def test_precision_and_recall_of_a_category():
    labels = np.array([[1], [1], [-1], [0]], np.int8)
    scores = np.array([[0.9], [0.2], [0.8], [0.9]])
    data = LabelledImages((), labels, ("a",))
    (row,) = category_rows(scores, data, np.array([0.5]), evaluate(scores, data))
    assert (row.precision, row.recall) == (50, 50)


def test_what_a_user_gets_wrong(fails, bundle, scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_test.json"
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("eval", bundle, annotations, "--report", tmp_path / "file" / "r.html")


def test_unreadable_images_stop_an_evaluation_or_are_left_out(sdpl, fails, bundle, scenes, tmp_path):
    (tmp_path / "labels.jsonl").write_text(
        '{"image": "good.jpg", "positives": ["one"], "negatives": ["two"]}\n'
        '{"image": "bad.jpg", "positives": ["two"]}\n'
    )
    (tmp_path / "good.jpg").write_bytes((scenes / "test" / "000000.jpg").read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"x")
    words = ("eval", bundle, tmp_path / "labels.jsonl", "--report", tmp_path / "r.html")
    assert "bad.jpg: is not an image that can be read" in fails(*words)
    assert not (tmp_path / "r.html").exists()
    result = sdpl(*words, "--skip-unreadable", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert "skipped: " in result.stderr
    assert json.loads((tmp_path / "m.json").read_text())["images"] == 1


def test_the_page_s_own_script_is_all_that_its_policy_lets_run(scenes, tmp_path):
    data = read_labels(scenes / "annotations" / "instances_test.json")
    text = write(tmp_path, data, np.random.RandomState(0).uniform(size=data.labels.shape), np.full(10, 0.5))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert len(re.findall("<script", text)) == 2  # and the counts, which are data
    for anchor in re.findall(r'href="#([a-z-]+)"', text):
        assert f'id="{anchor}"' in text
    assert "<th>" not in text  # every heading says what it heads
    assert "random scores: " in text


def test_counts_of_the_slider_are_the_table_s_precision_and_recall():
    random = np.random.RandomState(1)
    labels, scores = random.randint(-1, 2, (60, 3)).astype(np.int8), random.uniform(size=(60, 3))
    data = LabelledImages((), labels, ("a", "b", "c"))
    counts = threshold_counts(scores, labels)
    for at in (1, 30, 77):
        rows = category_rows(scores, data, np.full(3, at / 100), evaluate(scores, data))
        for row, (positive, negative) in zip(rows, counts, strict=True):
            hits, claims = positive[at], positive[at] + negative[at]
            assert row.precision == pytest.approx(100 * hits / claims)
            assert row.recall == pytest.approx(100 * hits / positive[0])
            assert row.f1 == pytest.approx(200 * hits / (positive[0] + claims))


def test_small_numbers_are_not_shown_as_zero(scenes, tmp_path):
    data = read_labels(scenes / "annotations" / "instances_test.json")
    text = write(tmp_path, data, np.full(data.labels.shape, 0.0004), np.full(10, 0.5))
    assert "&lt;0.01" in text
    assert ">0.00<" not in text


def test_several_models_beside_each_other(sdpl, fails, checkpoint, bundle, scenes, tmp_path):
    annotations, out = scenes / "annotations" / "instances_test.json", tmp_path / "r.html"
    words = ("eval", bundle, annotations, "--worst", "2", "--compare", checkpoint)
    result = sdpl(*words, "--report", out)
    assert result.exit_code == 0, result.output
    page = Page(out.read_text())
    assert "Beside other models" in page.text
    assert page.text.count(str(checkpoint)) == 1 + 2 * 2  # the table; scores and attention of each of the two samples
    bars = [address for address in page.addresses if address.startswith("data:image/svg")][-4:]
    assert all(str(checkpoint) in base64.b64decode(bar.split(",")[1]).decode() for bar in bars)  # the legend
    assert "add --report" in fails(*words)


def test_metrics_of_an_earlier_evaluation_beside_the_model(sdpl, fails, checkpoint, bundle, scenes, tmp_path):
    annotations, out, metrics = scenes / "annotations" / "instances_test.json", tmp_path / "r.html", tmp_path / "m.json"
    assert sdpl("eval", checkpoint, annotations, "--json", metrics).exit_code == 0
    words = ("eval", bundle, annotations, "--worst", "2", "--report", out, "--compare", metrics)
    result = sdpl(*words)
    assert result.exit_code == 0, result.output
    page = Page(out.read_text())
    assert "Beside other models" in page.text
    assert page.text.count(str(metrics)) == 1  # the table: its scores are not known, so samples are the model's own
    bars = [address for address in page.addresses if address.startswith("data:image/svg")][-4:]
    assert all("/m.json" in base64.b64decode(bar.split(",")[1]).decode() for bar in bars)
    written = json.loads(metrics.read_text())
    for wrong, complaint in (
        ({**written, "images": 9}, "is about 9 images and 10 categories, not the same 8 images and 10 categories"),
        ({**written, "ap": {"one": 5.0}}, "compare models on the same labels"),
        ({**written, "f1": {}}, "has no OF1 and CF1"),
        ({"images": 8}, "is not what `sdpl-eval --json` writes (mAP: Field required)"),
        ([], "is not what `sdpl-eval --json` writes"),
    ):
        metrics.write_text(json.dumps(wrong))
        assert complaint in fails(*words)
    metrics.unlink()
    assert "m.json: cannot be read" in fails(*words)


def test_no_photo_is_in_more_than_two_cards(scenes, tmp_path):
    data = read_labels(scenes / "annotations" / "instances_test.json")
    text = write(tmp_path, data, np.where(data.labels > 0, 0.1, 0.9), np.full(10, 0.5))  # wrong everywhere
    cards = re.findall(r'<img src="data:image/jpeg[^"]*" alt="(\d+\.jpg)"', text)
    shown = Counter(cards)
    assert len(cards) >= 3 + 3 + 3
    assert max(shown.values()) == 2


def many(count):
    """Labels and scores of so many categories, with the longest names, every letter of which is escaped."""
    names = tuple(f"{c:05d}" + 495 * "&" for c in range(count))
    random = np.random.RandomState(0)
    labels = random.choice([-1, 0, 1], (12, count), p=[0.3, 0.2, 0.5]).astype(np.int8)
    return names, labels, random.uniform(size=labels.shape)


def test_thousands_of_categories_stay_under_2_mb_and_the_page_says_what_it_shows(scenes, tmp_path):
    names, labels, scores = many(2 * MOST_ROWS)
    images = read_labels(scenes / "annotations" / "instances_train.json").images[:12]
    few = evaluate(scores[:, :4], LabelledImages((), labels[:, :4], names[:4]))
    result = replace(few, ap=dict(zip(names, np.linspace(0, 100, len(names)).tolist(), strict=True)))
    text = write(tmp_path, LabelledImages(images, labels, names), scores, np.full(len(names), 0.5), result)
    assert len(text.encode()) < 2_000_000
    assert text.count('<th scope="row">') == MOST_ROWS + 2
    assert "Shown are 800 of 1,600 categories, half of them with the lowest AP" in text
    assert "sdpl-eval --json writes the AP of all" in text
    assert re.search(r"and \d{3} more", text)  # of what is present in an image


def test_the_table_keeps_the_worst_and_the_best_in_their_order():
    names = [f"{c:05d}" for c in range(MOST_ROWS + 50)]
    aps = np.random.RandomState(0).permutation(len(names)).tolist()
    rows = [CategoryRow(name, 0, 0, 0, 0, ap, 0.5, None, None, None) for name, ap in zip(names, aps, strict=True)]
    rows[7] = replace(rows[7], ap=None)
    shown = [int(row.category) for row in shown_rows(rows)]
    assert len(shown) == MOST_ROWS
    assert shown == sorted(shown)
    assert 7 not in shown
    left_out = [aps[i] for i in range(len(rows)) if i not in shown and i != 7]
    kept = sorted(aps[i] for i in shown)
    assert kept[MOST_ROWS // 2 - 1] < min(left_out)
    assert max(left_out) < kept[MOST_ROWS // 2]
    few = [replace(row, ap=None) if i >= 10 else row for i, row in enumerate(rows)]
    assert [int(row.category) for row in shown_rows(few)] == list(range(MOST_ROWS))
    assert shown_rows([replace(rows[0], category=500 * "a")])[0].category == shortened(500 * "a", 80)


def test_one_category_alone_is_not_spoken_of_as_many(scenes, tmp_path):
    full = read_labels(scenes / "annotations" / "instances_test.json")
    data = LabelledImages(full.images, full.labels[:, :1], full.categories[:1])
    text = write(tmp_path, data, np.random.RandomState(0).uniform(size=data.labels.shape), np.full(1, 0.5))
    assert "1 category," in text
    for words in (
        "Dashed: the categories",
        "three of a category",
        "the three best of an image",
        "five best",
        "the five",
    ):
        assert words not in text
