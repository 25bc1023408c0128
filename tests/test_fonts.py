"""Names in pictures: of any script, without a word of matplotlib's."""

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from sdpl import fonts
from sdpl.plots import draw_attention, draw_recognition

PHOTO = Image.new("RGB", (40, 30), "green")
MAP = np.full((2, 2), 0.25, np.float32)


@pytest.fixture
def own_fonts(monkeypatch):
    """Only the fonts that come with matplotlib."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts._fonts_for.cache_clear()
    yield
    fonts._fonts_for.cache_clear()


def test_another_font_is_taken_for_what_the_own_one_lacks(own_fonts):
    assert fonts.lacking_line(["plain é", "\u24b6"]) is None  # a circled A, which DejaVu Sans lacks and STIX has
    with fonts.written(["\u24b6"]) as label:
        from matplotlib import pyplot

        assert pyplot.rcParams["font.family"][:2] == ["DejaVu Sans", "STIXGeneral"]
        assert label("\u24b6 $x$") == r"\u24b6 \$x\$".replace(r"\u24b6", "\u24b6")


def test_what_no_font_has_is_written_as_a_number_and_said_once(own_fonts, tmp_path):
    line = fonts.lacking_line(["犬", "猫", "dog"])
    assert "no installed font has 2 characters of the categories (犬猫)" in line or "(猫犬)" in line
    with fonts.written(["犬"]) as label:
        assert label("犬 a") == r"\u72ac a"
    picture = draw_recognition(PHOTO, [("犬", 0.9), ("$a$b$", 0.2)], {"犬"}, [("犬", MAP)])  # warnings are errors
    assert picture.width > 400
    draw_attention(PHOTO, [("犬", 0.9, MAP), ("$a$b$", 0.2, MAP)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_command_says_it_in_one_line(sdpl, bundle, scenes, tmp_path, own_fonts, monkeypatch):
    monkeypatch.setattr("sdpl.runtime.Recognizer.categories", tuple("零一二三四五六七八九"))
    result = sdpl("predict", bundle, scenes / "test" / "000000.jpg", "--save", tmp_path)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: no installed font has 10 characters of the categories (")
