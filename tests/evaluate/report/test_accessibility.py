"""What every page is to those who do not see it as drawn: axe-core's rules."""

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
