"""Word vectors of the categories: the semantic guidance x_c of the paper (section 3.2)."""

import difflib
import re
import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sdpl.errors import UserError, listed

SHIPPED = {"glove-coco80": "coco80", "glove-voc20": "voc20"}


def word_vectors(source: str, categories: Sequence[str]) -> np.ndarray:
    """Vectors float32 [C,W] of the categories' names from a shipped set, an .npz, or a GloVe text file.

    An .npz holds `names` [n] and `vectors` [n,W]. In a GloVe file a name of several words takes the mean
    of its words. Raises UserError listing every name or word that is missing.
    """
    if source in SHIPPED:
        with resources.files("sdpl.train").joinpath(f"glove/{SHIPPED[source]}.npz").open("rb") as stream:
            return _from_npz(stream, source, categories)
    path = Path(source)
    if not path.is_file():
        known = ", ".join(SHIPPED)
        raise UserError(f"word_vectors: {source!r} is neither 'clip' nor a shipped set ({known}) nor a file.")
    if path.suffix != ".npz":
        return _from_glove(path, categories)
    with open(path, "rb") as stream:
        return _from_npz(stream, source, categories)


def _from_npz(stream: BinaryIO, source: str, categories: Sequence[str]) -> np.ndarray:
    try:
        with np.load(stream, allow_pickle=False) as archive:
            rows = dict(zip(archive["names"].tolist(), archive["vectors"], strict=True))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{source}: needs the arrays 'names' and 'vectors' of one length ({error}).") from None
    missing = [name for name in categories if name not in rows]
    if missing:
        raise UserError(f"{source}: has no vector for {len(missing)} categories: {_with_nearest(missing, list(rows))}.")
    return np.stack([rows[name] for name in categories]).astype(np.float32)  # [C,W]


def _from_glove(path: Path, categories: Sequence[str]) -> np.ndarray:
    """Streamed: only the vectors of the needed words are kept."""
    needed = {word for name in categories for word in _words(name)}
    found: dict[str, np.ndarray] = {}
    vocabulary: list[str] = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            word, _, numbers = line.rstrip("\n").partition(" ")
            vocabulary.append(word)
            if word not in needed:
                continue
            try:
                found[word] = np.array(numbers.split(), dtype=np.float32)
            except ValueError:
                raise UserError(f"{path}:{number}: is not a word and its numbers.") from None
    missing = sorted(needed - set(found))
    if missing:
        raise UserError(f"{path}: has no vector for {len(missing)} words: {_with_nearest(missing, vocabulary)}.")
    if len({len(v) for v in found.values()}) > 1:
        raise UserError(f"{path}: its vectors have different lengths; is the file cut off?")
    return np.stack([np.mean([found[w] for w in _words(name)], axis=0) for name in categories])  # [C,W]


def _words(name: str) -> list[str]:
    return re.findall(r"[^\s_\-/]+", name.lower())


def _with_nearest(missing: Sequence[str], known: list[str]) -> str:
    hints = []
    for word in missing:
        close = difflib.get_close_matches(word, known, n=1)
        hints.append(f"{word!r} (nearest: {close[0]!r})" if close else repr(word))
    return listed(hints, most=50)
