"""Word vectors of the categories: the semantic guidance x_c of the paper (section 3.2)."""

import difflib
import sys
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy

from sdpl.data.categories import require_distinct, words
from sdpl.errors import UserError, listed
from sdpl.text import counted

SHIPPED = {"glove-coco80": "coco80", "glove-voc20": "voc20"}
DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError)  # RuntimeError: encrypted
NEAREST = 3  # known words shown for each missing one
HINT_WORDS = 100_000  # that they are looked for among: GloVe's files begin with the most frequent
MAX_NAMES = 4_000_000  # GloVe has at most 2.2 million words, word2vec 3 million
MAX_WIDTH = 4096  # numbers of a vector
MAX_BYTES = 1 << 30  # of an array in an .npz, decompressed; an .npy is read in place
MAX_FILE = 64 << 30  # bytes of a file
MAX_LINE = 1 << 20  # characters of a line of a GloVe file
MAX_TEXT = 256 << 20  # characters of the names beside an .npy
MAX_WORD = 100  # characters of a word for the hints


def word_vectors(source: str, categories: Sequence[str]) -> np.ndarray:
    """Vectors float32 [C,W] of the categories' names from a shipped set, an .npz, an .npy, or a GloVe text file.

    An .npz holds `names` [n] and `vectors` [n,W]; an .npy holds the vectors, and a .txt of the same name beside it the
    names, one a line. In a GloVe file a name of several words takes the mean of its words. Names count as the same
    when their words are ("Fire_Hydrant" is "fire hydrant"). Raises UserError listing every name or word that is
    missing.
    """
    require_distinct(categories, "word_vectors")
    if source in SHIPPED:
        with resources.files("sdpl.train.model").joinpath(f"glove/{SHIPPED[source]}.npz").open("rb") as stream:
            return _of_names(*_read_npz(stream, source), source, categories)
    path = Path(source)
    if not path.is_file():
        known = ", ".join(SHIPPED)
        raise UserError(f"word_vectors: {source!r} is neither 'clip' nor a shipped set ({known}) nor a file.")
    if path.stat().st_size > MAX_FILE:
        raise UserError(f"{path}: has more than {MAX_FILE >> 30} GB; keep only the vectors that are needed.")
    if path.suffix == ".npz":
        with open(path, "rb") as stream:
            return _of_names(*_read_npz(stream, source), source, categories)
    if path.suffix == ".npy":
        return _of_names(*_read_npy(path), source, categories)
    return _from_glove(path, categories)


def _read_npz(stream: IO[bytes], source: str) -> tuple[list[str], np.ndarray]:
    try:
        with zipfile.ZipFile(stream) as archive:
            names, vectors = (_read_entry(archive, f"{key}.npy") for key in ("names", "vectors"))
        if names.dtype.kind != "U":
            raise ValueError(f"the names are {names.dtype}, not text")
        if names.size and names.dtype.itemsize and _code_points(names).max() > sys.maxunicode:
            raise ValueError("the names hold numbers that are no characters")
        return names.reshape(-1).tolist(), vectors
    except (ValueError, KeyError, OSError, EOFError, NotImplementedError, *DAMAGED) as error:
        raise UserError(f"{source}: needs the arrays 'names' and 'vectors' ({error}).") from None


def _read_entry(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz, whose size is known before memory is taken. Raises ValueError for what is none."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as stream:
        announced = _require_bounded(stream)
    if max(size, announced) > MAX_BYTES:
        raise ValueError(f"{name} has {max(size, announced):,} bytes, more than {MAX_BYTES:,}; save it as .npy")
    if size < announced:
        raise ValueError(f"{name} is cut off: it has {size:,} bytes of {announced:,}")
    with archive.open(name) as stream:
        array: np.ndarray = npy.read_array(stream, allow_pickle=False)
    return array


def _code_points(names: np.ndarray) -> np.ndarray:
    return np.frombuffer(names.tobytes(), names.dtype.str[0] + "u4")


def _require_bounded(stream: IO[bytes]) -> int:
    """The bytes that an .npy announces. Raises ValueError for shapes and types that no names and vectors have."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is for other arrays")
    try:
        shape, _, dtype = readers[version](stream)
    except (SyntaxError, TokenError, RecursionError) as error:  # a header is read as a Python literal
        raise ValueError(f"its header is damaged ({error})") from None
    if dtype.kind not in "fiuU" or len(shape) not in (1, 2):
        raise ValueError(f"expected names [n] and vectors [n,W] of floats, got {dtype} {list(shape)}")
    if shape[0] > MAX_NAMES or max(shape[1:], default=0) > MAX_WIDTH:
        raise ValueError(f"at most {MAX_NAMES:,} vectors of {MAX_WIDTH:,} numbers are read, got {list(shape)}")
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    names = path.with_suffix(".txt")
    if not names.is_file():
        raise UserError(f"{path}: needs the names of its rows in {names}, one a line.")
    try:
        with open(names, encoding="utf-8") as lines:
            text = lines.read(MAX_TEXT + 1)
        if len(text) > MAX_TEXT:
            raise ValueError(f"{names} has more than {MAX_TEXT >> 20} MB")
        with open(path, "rb") as stream:
            _require_bounded(stream)
        vectors = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        return [line.strip() for line in text.splitlines() if line.strip()], vectors
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None


def _of_names(names: list[str], vectors: np.ndarray, source: str, categories: Sequence[str]) -> np.ndarray:
    """The rows of `vectors` [n,W] whose names are the categories, float32 [C,W]."""
    if vectors.ndim != 2 or len(vectors) != len(names) or vectors.dtype.kind != "f":
        got = f"{vectors.dtype} {list(vectors.shape)}"
        raise UserError(f"{source}: expected one vector of floats for each of its {len(names)} names, got {got}.")
    require_distinct(names, source)
    rows = {words(name): row for row, name in enumerate(names)}
    missing = [name for name in categories if words(name) not in rows]
    if missing:
        raise UserError(f"{source}: has no vector for {counted(len(missing))}: {_with_nearest(missing, names)}.")
    return vectors[[rows[words(name)] for name in categories]].astype(np.float32)  # [C,W]


def _from_glove(path: Path, categories: Sequence[str]) -> np.ndarray:
    """Streamed: only the vectors of the needed words, and the words for the hints, are kept."""
    needed = {word for name in categories for word in words(name)}
    found: dict[str, np.ndarray] = {}
    vocabulary: list[str] = []
    size = 0  # numbers in a line
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(iter(partial(lines.readline, MAX_LINE), ""), 1):
            size = size or _numbers_in(line)
            if len(line) == MAX_LINE or size > MAX_WIDTH:
                raise UserError(f"{path}:{number}: is longer than a word and {MAX_WIDTH:,} numbers: no word vectors.")
            word, *numbers = line.rstrip().rsplit(" ", size)  # from the right: some words of GloVe 840B hold spaces
            if number <= HINT_WORDS:
                vocabulary.append(word[:MAX_WORD])
            if word not in needed or word in found:
                continue
            found[word] = _vector(numbers)  # [W]
            if len(found[word]) != size or not np.isfinite(found[word]).all():
                raise UserError(f"{path}:{number}: is not a word and {size} numbers; is the file cut off?")
            if len(found) == len(needed):
                break
    missing = sorted(needed - set(found))
    if missing:
        raise UserError(f"{path}: has no vector for {len(missing)} words: {_with_nearest(missing, vocabulary)}.")
    return np.stack([np.mean([found[w] for w in words(name)], axis=0) for name in categories])  # [C,W]


def _vector(numbers: list[str]) -> np.ndarray:
    try:
        return np.array(numbers, dtype=np.float32)
    except ValueError:
        return np.zeros(0)


def _numbers_in(line: str) -> int:
    """How many numbers a line has; 0 for the "400000 300" with which word2vec's text files begin."""
    count = len(line.split()) - 1
    return count if count > 1 else 0


def _with_nearest(missing: Sequence[str], known: Sequence[str]) -> str:
    hints = []
    for word in missing:
        near = difflib.get_close_matches(word, known, n=NEAREST)
        hints.append(f"{word!r} (nearest: {', '.join(near)})" if near else repr(word))
    return listed(hints, most=len(hints))
