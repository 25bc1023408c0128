"""What every page is to those who do not see it as drawn: axe-core's rules, and the tree that screen readers get."""

import itertools

import pytest
from report_pages import PAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=PAGES)
def report(request, tmp_path_factory):
    return PAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=[(420, "light"), (1280, "dark")], ids=["phone-light", "desktop-dark"])
def page(browser, report, request):
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.goto(report.as_uri())
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.close()


def test_axe_finds_nothing(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="it brings axe-core").Axe()
    results = axe.run(page)
    assert len(results.response["passes"]) > 20
    assert results.violations_count == 0, results.generate_report()
    page.evaluate("document.querySelector('h1').outerHTML = '<h4>low</h4>'")  # what it must find
    page.evaluate("document.querySelector('img').removeAttribute('alt')")
    found = {violation["id"] for violation in axe.run(page).response["violations"]}
    assert {"image-alt", "page-has-heading-one"} <= found


def test_charts_fit_their_cards_with_text_that_can_be_read(page):
    for chart in page.locator("picture img").all():
        chart.scroll_into_view_if_needed()
        natural, shown, card = chart.evaluate("one => [one.naturalWidth, one.width, one.closest('.card').clientWidth]")
        assert shown <= card
        assert shown > 0.85 * min(natural, 500)  # smallest text: 7 pt, or 8 CSS pixels
    wide = page.evaluate("[...document.querySelectorAll('.card')].filter(c => c.scrollWidth > c.clientWidth).length")
    tables = page.locator(".card.scroll:has(table)").count()
    assert wide <= tables  # only tables scroll sideways


def tree(page) -> list[dict]:
    """The nodes of Chromium's accessibility tree, as a screen reader is given them, in the order of the page."""
    session = page.context.new_cdp_session(page)
    nodes = {node["nodeId"]: node for node in session.send("Accessibility.getFullAXTree")["nodes"]}
    (root,) = [key for key, node in nodes.items() if "parentId" not in node]
    found, todo = [], [root]
    while todo:
        node = nodes[todo.pop()]
        todo += reversed([child for child in node.get("childIds", ()) if child in nodes])
        if not node["ignored"]:
            properties = {item["name"]: item["value"].get("value") for item in node.get("properties", ())}
            value = node.get("value", {}).get("value")
            found.append({"role": node["role"]["value"], "name": node.get("name", {}).get("value", ""),
                          "value": value, **properties})  # fmt: skip
    return found


def of(nodes, *roles) -> list[dict]:
    return [node for node in nodes if node["role"] in roles]


def test_everything_has_a_role_and_a_name(page):
    nodes = tree(page)
    named = of(
        nodes, "image", "img", "table", "region", "navigation", "button", "link", "searchbox", "slider", "heading"
    )
    assert len(named) > 20
    assert [node for node in named if not node["name"].strip()] == []
    for role in ("table", "region"):
        names = [node["name"] for node in of(nodes, role)]
        assert len(set(names)) == len(names), names  # which one it is, is heard
    levels = [node["level"] for node in of(nodes, "heading")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= before + 1 for before, later in itertools.pairwise(levels)), levels
    assert len(of(nodes, "main")) == 1
    headers = of(nodes, "columnheader")
    assert all(node["name"].strip() for node in headers)
    assert len(of(nodes, "rowheader")) >= 5
    assert not of(nodes, "LayoutTable", "LayoutTableCell")
    (search,) = of(nodes, "searchbox")
    assert search["name"].startswith("Category")


def test_what_changes_is_announced(page):
    page.fill("#filter", "person")
    nodes = tree(page)
    assert "1 of 5" in [node["name"] for node in of(nodes, "StaticText")]
    live = page.evaluate("[...document.querySelectorAll('output')].map(one => one.id)")
    assert len(of(nodes, "status")) == len(live)  # each is a live region
    assert all(node["live"] == "polite" for node in of(nodes, "status"))
    page.get_by_role("button", name="category", exact=True).click()
    assert page.locator("th[aria-sort=ascending]").count() == 1
    sliders = of(tree(page), "slider")
    assert len(sliders) == page.locator("#threshold").count()
    if sliders:
        assert sliders[0]["name"] == "Threshold"
        assert page.get_attribute("#threshold", "aria-valuetext") == "the model's own"  # not 50
        page.fill("#threshold", "70")
        assert page.get_attribute("#threshold", "aria-valuetext") == "0.70"
        assert page.inner_text("#effect").startswith("mean of the categories: precision ")
        page.get_by_role("button", name="Own thresholds").click()
        assert page.inner_text("#effect") == ""
