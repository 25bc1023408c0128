"""One HTML file that needs nothing beside it and no network: what every report shares."""

import base64
import hashlib
import io
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


@dataclass(frozen=True)
class Figure:
    """One figure twice, as SVG in data URIs: for a light and for a dark page."""

    light: str
    dark: str
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
    """What `draw` draws, in both themes."""
    plot, uris = pyplot(), {}
    for name, theme in THEMES.items():
        with plot.rc_context(_settings(theme)), warnings.catch_warnings():
            # a name's letters are the browser's matter, not its font's
            warnings.filterwarnings("ignore", message="Glyph")
            drawn = draw()
            stream = io.BytesIO()
            drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
            plot.close(drawn)
        uris[name] = f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Figure(**uris, alt=alt)


def _settings(theme: dict[str, str]) -> dict[str, Any]:
    text, muted = theme["text"], theme["muted"]
    return {
        "axes.prop_cycle": pyplot().cycler(color=theme["cycle"].split()),
        "axes.edgecolor": muted,
        "axes.labelcolor": text,
        "axes.spines.right": False,
        "axes.spines.top": False,
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
