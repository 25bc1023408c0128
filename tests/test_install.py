"""No hint and no page tells anyone to install a name that is not ours, and every extra that is named exists."""

import re
import tomllib
from pathlib import Path

import sdpl
from sdpl.cli.command import EXTRAS
from sdpl.install import DISTRIBUTION, install_line
from sdpl.targets import BACKENDS

ROOT = Path(sdpl.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "sdpl/**/*.py", "benchmarks/*", "examples/*", "configs/*", "experiments/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
]
INSTALLED = re.compile(r"pip install (?:-\S+ )*[\"']?([^\s\"'`)]+)")
OTHERS = {
    "torch",
    "nvidia-pytriton==0.7.0",
    "{package}",
    "$wheels",
}  # names of others, or set just before, that pages may tell people to install


def test_every_hint_installs_the_checkout():
    seen = [(path, name) for path in PAGES for name in INSTALLED.findall(path.read_text())]
    assert len(seen) >= 10
    for path, name in seen:
        extras = re.fullmatch(r"\.(?:\[([a-z,]+|\{extra\})\])?", name)
        assert extras or name in OTHERS or (path.name == "README.md" and name == "sdpl"), f"{path}: pip install {name}"
        for extra in ((extras and extras[1]) or "").split(","):
            assert extra in {"", "{extra}", *PROJECT["optional-dependencies"]}, f"{path}: {name}"


def test_the_strangers_name_is_only_warned_of():
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"pip install sdpl\b", text) == ["pip install sdpl"]
    assert "**`pip install sdpl` brings another project of that name**" in text


def test_every_extra_in_the_code_exists():
    extras = PROJECT["optional-dependencies"].keys()
    assert {*EXTRAS.values(), *(backend.extra for backend in BACKENDS.values())} <= extras
    assert PROJECT["name"] == DISTRIBUTION
    assert install_line("train") == 'pip install ".[train]" in a checkout of sdpl'
