"""The OpenAPI description of the HTTP side."""

from typing import Any

from sdpl import __version__


def document() -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "sdpl", "version": __version__}, "paths": {}}
