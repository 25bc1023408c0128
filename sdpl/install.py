"""How a missing part is installed: the one place that every hint takes its words from.

The distribution is called `sdpl-toolkit`; it is not published, and `sdpl` on the public index is a stranger's. So the
hints name what works: a checkout.
"""

DISTRIBUTION = "sdpl-toolkit"


def install_line(extra: str) -> str:
    """The command that brings an extra of pyproject.toml."""
    return f'pip install ".[{extra}]" in a checkout of sdpl'
