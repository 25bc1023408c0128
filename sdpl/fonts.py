"""Fonts for pictures: category names may have characters that matplotlib's own font has not."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

OWN = "DejaVu Sans"  # comes with matplotlib
NO_FONTS = ("Last Resort",)  # has a box for every character


@contextmanager
def written(names: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """Draw inside this with fonts of this machine that have the names' characters. Yields what makes a label of a name:
    a character that no font has is written as its number, such as \\u65e5, and nothing is taken for a formula."""
    import matplotlib

    families, lacking = _fonts_for(frozenset().union(*names))

    def label(name: str) -> str:
        return "".join(f"\\u{ord(c):04x}" if c in lacking else c for c in name).replace("$", r"\$")

    with matplotlib.rc_context({"font.family": [OWN, *families]}):
        yield label


def lacking_line(names: Iterable[str]) -> str | None:
    """What to tell a person before pictures with these names are drawn; None when every character can be written."""
    lacking = sorted(_fonts_for(frozenset().union(*names))[1])
    if not lacking:
        return None
    shown = "".join(lacking[:8]) + ("..." if len(lacking) > 8 else "")
    return (
        f"no installed font has {len(lacking)} characters of the categories ({shown}): pictures show their numbers; "
        "install one that has, such as Debian's fonts-noto-cjk."
    )


@functools.lru_cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have what the own font lacks, and the characters that none has."""
    from matplotlib import font_manager

    missing = {c for c in characters - _has(font_manager.findfont(OWN), characters) if not c.isspace()}
    families: list[str] = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.name)):
        if not missing:
            break
        if font.name in families or font.name.startswith(NO_FONTS):
            continue
        found = _has(font.fname, missing)
        if found:
            families.append(font.name)
            missing -= found
    return tuple(families), frozenset(missing)


def _has(path: str, characters: Iterable[str]) -> set[str]:
    from matplotlib.ft2font import FT2Font

    with suppress(OSError, RuntimeError):  # a font that was removed, or that FreeType cannot read
        known = FT2Font(path).get_charmap()
        return {c for c in characters if ord(c) in known}
    return set()
