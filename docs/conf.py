"""Sphinx: docs/*.md and the docstrings as one site. `make docs` builds it; every warning is an error."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

from sdpl import __version__

project = "sdpl"
release = __version__
html_title = f"sdpl {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_click"]
html_theme = "furo"
html_show_sourcelink = False
html_show_copyright = False

myst_heading_anchors = 4  # [text](page.md#a-heading) works as in the checkout, and a wrong one is an error
smartquotes = False  # -- is an option's beginning
default_role = "code"  # docstrings write `name` for code

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
add_module_names = False
python_use_unqualified_type_names = True
nitpicky = True  # references to names of sdpl that lead nowhere are errors, too
INSIDE = "|".join(  # in a signature, but nobody else's to rely on
    (
        r"kernels\.reference\.Array",
        r"pipeline\.Decoder",
        r"runtime\.(backends\..*|recognizer\.Source)",
        r"scale\.(output\.Counts|worker\.Times)",
    )
)
nitpick_ignore_regex = [
    ("py:.*", r"(?!sdpl\.).*"),  # pages of other libraries are on the network, which a build does not ask
    ("py:class", rf"sdpl\.({INSIDE})"),
]


def mark_parameters(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings say `name: what it is` in running text; here the names stand out."""
    try:
        names = [name for name in inspect.signature(thing).parameters if name != "self"]
    except (TypeError, ValueError):  # a property, or data
        return
    if names:
        start = re.compile(rf"(^|[.;] )((?:(?:{'|'.join(names)})(?:, | and )?)+): ")
        lines[:] = [start.sub(r"\1**\2**: ", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_parameters)
