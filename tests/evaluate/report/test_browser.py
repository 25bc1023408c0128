"""The report in a real browser: the threshold slider, sorting, filtering, the keyboard."""

import numpy as np
import pytest

from sdpl.data.images import LabelledImages
from sdpl.evaluate.evaluation import Evaluated, evaluate
from sdpl.evaluate.report.html import CategoryRow, category_rows, write_report

pytestmark = pytest.mark.slow

NAMES = ("zebra", "ant", "Bee", "cat", "dog", "nobody", "unlabelled")
THRESHOLDS = np.array([0.5, 0.25, 0.75, 0.5, 0.29, 0.5, 0.5])
COLUMNS = ("category", "known", "positive", "negative", "unknown", "AP", "threshold", "precision", "recall", "F1")
NOTHING = "\N{EN DASH}"  # in place of a number that is undefined
CELLS = """() => [...document.querySelectorAll("#categories tbody tr")].filter(row => !row.hidden)
    .map(row => [...row.cells].map(cell => cell.textContent))"""
ALL_THRESHOLDS = """() => {
    const slider = document.getElementById("threshold"), found = [];
    for (let at = 1; at < 100; at++) {
        slider.value = at;
        slider.dispatchEvent(new Event("input"));
        found.push([...document.querySelectorAll("#categories tbody tr")].map(
            row => [...row.cells].slice(6).map(cell => cell.textContent)));
    }
    return found;
}"""


def shown(value: float | None) -> str:
    """A metric as the page's template writes it."""
    if value is None:
        return NOTHING
    return "<0.1" if 0 < value < 0.05 else f"{value:.1f}"


def cells(row: CategoryRow) -> list[str]:
    return [f"{row.threshold:.2f}", shown(row.precision), shown(row.recall), shown(row.f1)]


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    """Labels with unknowns, a category without a positive and one without any label; no pictures are needed."""
    labels = np.random.RandomState(0).choice([-1, -1, 0, 1], (80, len(NAMES))).astype(np.int8)
    labels[:, 5], labels[:, 6] = -1, 0
    labels[:16, 0], labels[16:, 0] = 1, -1  # recalls such as 1/16: 6.25 %, where rounding differs between languages
    return LabelledImages((), labels, NAMES)


@pytest.fixture(scope="module")
def scores(data) -> np.ndarray:
    """Many lie exactly on a step of the slider; float32, as models give them."""
    random = np.random.RandomState(1)
    steps = random.randint(0, 101, data.labels.shape) / 100
    return np.where(random.uniform(size=steps.shape) < 0.5, steps, random.uniform(size=steps.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def report(data, scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "r.html"
    model = Evaluated(None, None, NAMES, 32, THRESHOLDS, "PyTorch")
    write_report(path, "model", "labels", model, data, scores, evaluate(scores, data, THRESHOLDS), 0)
    return path


@pytest.fixture(params=[(420, "light"), (1200, "dark")], ids=["phone-light", "desktop-dark"])
def page(browser, report, request):
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong, asked = [], []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert wrong == []
    assert all(url.startswith((report.as_uri(), "data:")) for url in asked)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.close()


def column(page, name: str) -> list[str]:
    return [row[COLUMNS.index(name)] for row in page.evaluate(CELLS)]


def sort(page, name: str) -> str:
    page.get_by_role("button", name=name, exact=True).click()
    headings = page.locator("#categories th[aria-sort]")
    assert headings.count() == 1
    assert headings.inner_text().strip() == name
    return headings.get_attribute("aria-sort")


def test_the_slider_counts_as_python_does(page, data, scores):
    result = evaluate(scores, data)
    own = [cells(row) for row in category_rows(scores, data, THRESHOLDS, result)]
    assert [row[6:] for row in page.evaluate(CELLS)] == own
    for at, found in enumerate(page.evaluate(ALL_THRESHOLDS), 1):
        expected = [cells(row) for row in category_rows(scores, data, np.full(len(NAMES), at / 100), result)]
        assert found == expected, at
    means = []
    for name in ("precision", "recall", "f1"):
        values = [v for row in category_rows(scores, data, np.full(len(NAMES), 0.99), result)
                  if (v := getattr(row, name)) is not None]  # fmt: skip
        means.append(shown(sum(values) / len(values) if values else None))
    said = "mean of the categories: precision {}, recall {}, F1 {}".format(*means)
    assert page.inner_text("#effect") == said  # of the last step
    page.get_by_role("button", name="Own thresholds").click()
    assert [row[6:] for row in page.evaluate(CELLS)] == own
    assert page.inner_text("#chosen") == "the model's own"


def test_headings_sort_and_rows_without_a_value_are_last(page):
    assert column(page, "category") == list(NAMES)
    assert sort(page, "category") == "ascending"
    assert column(page, "category") == sorted(NAMES, key=str.lower)
    assert sort(page, "category") == "descending"
    assert column(page, "category") == sorted(NAMES, key=str.lower, reverse=True)
    assert sort(page, "AP") == "descending"
    values = [float(value) for value in column(page, "AP")[:5]]
    assert values == sorted(values, reverse=True)
    assert column(page, "AP")[5:] == [NOTHING, NOTHING]
    assert sort(page, "AP") == "ascending"
    assert [float(value) for value in column(page, "AP")[:5]] == values[::-1]
    assert column(page, "AP")[5:] == [NOTHING, NOTHING]


def test_a_sorted_table_stays_sorted_when_the_threshold_moves(page):
    sort(page, "recall")
    before = column(page, "category")
    page.fill("#threshold", "90")
    values = [float(value) for value in column(page, "recall")[:5]]
    assert values == sorted(values, reverse=True)
    assert column(page, "category") != before
    assert page.inner_text("#chosen") == page.get_attribute("#threshold", "aria-valuetext") == "0.90"


def test_the_filter_takes_parts_of_names_and_says_how_many(page):
    page.fill("#filter", " B ")
    assert column(page, "category") == ["zebra", "Bee", "nobody", "unlabelled"]
    assert page.inner_text("#found") == "4 of 7"
    page.fill("#filter", "nothing like it")
    assert page.evaluate(CELLS) == []
    assert page.inner_text("#found") == "0 of 7"
    page.fill("#filter", "")
    assert column(page, "category") == list(NAMES)


def test_everything_is_reached_and_used_by_keyboard(page):
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"Curves", "All categories", "filter", "threshold", "reset", *COLUMNS} <= set(reached)
    assert page.locator("div[role=region]:not([tabindex='0'])").count() == 0  # what scrolls, scrolls with arrow keys
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#chosen") == "0.51"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.inner_text("#chosen") == "the model's own"
    page.get_by_role("button", name="F1", exact=True).focus()
    page.keyboard.press("Enter")
    values = [float(value) for value in column(page, "F1") if value != NOTHING]
    assert values == sorted(values, reverse=True)
