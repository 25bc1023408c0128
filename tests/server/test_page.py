"""The page at /, in a real browser: Debian's Chromium driven by playwright, where both are installed."""

import pytest
from serving import Server

SIZES = {"desktop": (1100, 760), "phone": (390, 844)}


def test_the_page_is_small_and_asks_nobody_else(server):
    status, headers, body = server.request("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert len(body) < 12_000
    assert b"http://" not in body
    assert b"https://" not in body


def test_the_description_names_every_path(server):
    status, document = server.get("/openapi.json")
    assert status == 200
    assert {"/recognize", "/v2/models/{name}/infer", "/metrics"} <= document["paths"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_photo_is_recognized_explained_and_reached_by_keyboard(browser, server: Server, scenes, tmp_path, size):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{server.http_port}/")
    page.set_input_files("#file", scenes / "test" / "000000.jpg")
    page.wait_for_selector("#labels li")
    assert page.locator("#labels li").count() == 10
    page.hover("#labels li:nth-child(1) button")
    assert page.is_visible("#heat")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.uncheck("#own")
    page.fill("#limit", "0")
    assert page.locator("li.on").count() == 10
    page.fill("#limit", "1")
    assert page.locator("li.on").count() == 0
    assert "No label" in page.inner_text("#status")
    page.mouse.move(0, 0)
    page.focus("#limit")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    assert page.is_visible("#heat")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert "below its threshold" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert wrong == []
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    page.set_input_files("#file", bad)
    page.wait_for_selector("#status.bad")
    assert "is not an image that can be read" in page.inner_text("#status")
    assert all(url.startswith((f"http://127.0.0.1:{server.http_port}/", "blob:", "data:")) for url in asked)
    page.close()
