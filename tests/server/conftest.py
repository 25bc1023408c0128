"""One server for all tests that leave it as it is."""

import pytest
from serving import serving

from sdpl.runtime import Recognizer


@pytest.fixture(scope="session")
def server(bundle):
    with serving(bundle, "--workers", "2", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="session")
def recognizer(bundle):
    with Recognizer.open(bundle, "cpu:fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def photo(scenes):
    """An encoded image."""
    return (scenes / "test" / "000000.jpg").read_bytes()
