"""Values where others are expected: nested plain data with something changed at a random place."""

import copy
from typing import Any

import numpy as np

DEEP: Any = "deep"
for _ in range(60):
    DEEP = [DEEP]
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, -(2**63)),
    *("", " ", "0", "nan", "\0", "a\0b", "../x", "/etc/passwd", "C:\\x", "a" * 300, "a" * 10_000, "\ud800", "\udcff"),
    *(
        "\x1b[31mred\x1b[0m",
        "[bold]x[/bold]",
        "[/]",
        "a\nb",
        "2024-01-01",
        "{}",
        "%s",
        "\u202eabc",
        "日本語",
        "é" * 200,
    ),
    *([], {}, [[]], [{}], [None], {"": 0}, {"a": {"b": []}}, [0] * 1000, DEEP),
)


def changed(value: Any, random: np.random.Generator, tensors: tuple[Any, ...] = ()) -> Any:
    """A copy with 1 to 3 changes: a value replaced, taken out, doubled, renamed, or exchanged with another."""
    result = copy.deepcopy(value)
    for _ in range(int(random.integers(1, 4))):
        places = list(_places(result))
        if not places:
            return _any(random, tensors)
        # deep places are many: choose the depth first
        depth = int(random.choice(sorted({len(place) for place in places})))
        at = [place for place in places if len(place) == depth]
        _change(result, at[int(random.integers(len(at)))], random, tensors)
    return result


def _change(root: Any, place: tuple[Any, ...], random: np.random.Generator, tensors: tuple[Any, ...]) -> None:
    holder = root
    for key in place[:-1]:
        holder = holder[key]
    key, kind = place[-1], int(random.integers(6))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(int(random.integers(len(holder) + 1)), copy.deepcopy(holder[key]))
    elif kind == 1:
        holder[_text(random)] = holder.pop(key)
    elif kind == 2 and isinstance(holder[key], str):
        holder[key] = holder[key] + _text(random)
    elif kind == 2 and isinstance(holder[key], int | float):
        holder[key] = -holder[key] if random.random() < 0.5 else holder[key] * 10**9
    else:
        holder[key] = _any(random, tensors)


def _any(random: np.random.Generator, tensors: tuple[Any, ...]) -> Any:
    values = (*HOSTILE, *tensors, *tensors)
    return copy.deepcopy(values[int(random.integers(len(values)))])


def _text(random: np.random.Generator) -> str:
    texts = [value for value in HOSTILE if isinstance(value, str)]
    return texts[int(random.integers(len(texts)))]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        if len(place) < 8:
            yield from _places(item, (*place, key))
