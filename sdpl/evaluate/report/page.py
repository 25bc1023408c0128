"""One HTML file that needs nothing beside it and no network: what every report shares."""

import base64
import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from sdpl import __version__
from sdpl.files import replace_file
from sdpl.plots import pyplot

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

THEMES = {
    "light": {
        "text": "#1c2430",
        "muted": "#c9d0d8",
        "cycle": "#2f6fb5 #e08a1e #3a9a5b #c8453b #7d5ab5 #8a6a52 #c65f9c #7a828c",
    },
    "dark": {
        "text": "#e4e8ee",
        "muted": "#4a5360",
        "cycle": "#6aa5e8 #f0a94a #66c286 #ef7a70 #ab8ee6 #b8967c #e88fc2 #9aa3ae",
    },
}


NARROW = 4.0  # inches: the width of a figure on a phone; its text is then as large as the page's


@dataclass(frozen=True)
class Figure:
    """One figure four times, as SVG in data URIs: for a light and for a dark page, on a wide screen and on a phone."""

    light: str
    dark: str
    light_narrow: str
    dark_narrow: str
    alt: str


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a template of this folder, filled with `values`, atomically. Raises UserError when it cannot be written."""
    folder = resources.files("sdpl.evaluate.report")
    loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = folder.joinpath("table.js").read_text(encoding="utf-8")
    text = environment.get_template(template).render(
        script=Markup(script),  # ours, and the only one that the page's policy lets run: by its hash
        script_hash=Markup(f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"),
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def figure(draw: "Callable[[], matplotlib.figure.Figure]", alt: str) -> Figure:
    """What `draw` draws, in both themes and for both widths, which it learns from matplotlib's settings (`size`)."""
    plot, uris = pyplot(), {}
    for (name, theme), narrow in itertools.product(THEMES.items(), (False, True)):
        width = {"figure.figsize": (NARROW, NARROW)} if narrow else {}
        with plot.rc_context({**_settings(theme), **width}), warnings.catch_warnings():
            # a name's letters are the browser's matter, not its font's
            warnings.filterwarnings("ignore", message="Glyph")
            drawn = draw()
            stream = io.BytesIO()
            drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
            plot.close(drawn)
        encoded = base64.b64encode(_compact(stream.getvalue())).decode()
        uris[name + "_narrow" * narrow] = f"data:image/svg+xml;base64,{encoded}"
    return Figure(**uris, alt=alt)


def _compact(svg: bytes) -> bytes:
    """The same with paths of half the length: to a tenth of a point, below 10 to a hundredth; no needless spaces."""

    def shorter(path: re.Match[bytes]) -> bytes:
        rounded = re.sub(rb"(\.\d\d)\d+", rb"\1", re.sub(rb"(\d\d\.\d)\d+", rb"\1", path[0]))
        return re.sub(rb"\s*([MLHVCQz])\s*", rb"\1", rounded)

    return re.sub(rb"(?<= d=\")[^\"]*(?=\")", shorter, svg)


def is_narrow() -> bool:
    """Whether the figure that is being drawn is for a phone."""
    return bool(pyplot().rcParams["figure.figsize"][0] <= NARROW)


def size(width: float, height: float) -> tuple[float, float]:
    """Of a figure, in inches: as wide as asked for, or as a phone shows it."""
    return (NARROW if is_narrow() else width), height


def short(name: str, most: int = 24) -> str:
    """A name as a chart has room for it."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def counting_ticks(low: float, high: float) -> list[int]:
    """1, 2, 5, 10 and so on between two counts, for a logarithmic axis; over many decades only the powers of ten."""
    steps = (1, 2, 5) if high <= 500 * max(low, 1) else (1,)
    return [tick for power in range(10) for step in steps if low <= (tick := step * 10**power) <= high]


def legend_beside(axis: "matplotlib.axes.Axes", title: str) -> None:
    """The axis's legend to its right; on a phone below it."""
    if is_narrow():
        figure = axis.get_figure()
        assert figure is not None
        figure.legend(*axis.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2,
                      frameon=False, title=title)  # fmt: skip
    else:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title=title)


def _settings(theme: dict[str, str]) -> dict[str, Any]:
    text, muted = theme["text"], theme["muted"]
    return {
        "axes.prop_cycle": pyplot().cycler(color=theme["cycle"].split()),
        "axes.edgecolor": muted,
        "axes.labelcolor": text,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.sans-serif": ["DejaVu Sans"],  # whose measures matplotlib has; each text names all of the list
        "grid.color": muted,
        "legend.facecolor": "none",
        "legend.edgecolor": muted,
        "svg.fonttype": "none",  # text stays text: small and sharp
        "svg.hashsalt": "sdpl",
        "text.color": text,
        "text.parse_math": False,  # a category may hold a dollar sign
        "xtick.color": text,
        "ytick.color": text,
    }
