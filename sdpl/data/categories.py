"""The categories' names: their words, and what makes two of them the same."""

import re
from collections.abc import Sequence

from sdpl.errors import UserError, listed
from sdpl.text import name_problem


def words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: "Fire_Hydrant" is ("fire", "hydrant")."""
    return tuple(re.findall(r"[^\s_\-/]+", name.lower()))


def as_text(name: str) -> str:
    """The name as a prompt says it: "Fire_Hydrant" is "Fire Hydrant"."""
    return " ".join(name.replace("_", " ").split())


def require_distinct(categories: Sequence[str], source: str) -> None:
    """Raise UserError when a name is empty, too long or has control characters, or two are the same words and so the
    same prompt and word vector."""
    problem = next(filter(None, map(name_problem, categories)), None)
    if problem:
        raise UserError(f"{source}: {problem}; rename the category.")
    by_words: dict[tuple[str, ...], list[str]] = {}
    for name in categories:
        by_words.setdefault(words(name), []).append(name)
    if () in by_words:
        raise UserError(f"{source}: a category has no name; each needs one.")
    twice = [" = ".join(dict.fromkeys(names)) for names in by_words.values() if len(names) > 1]
    if twice:
        raise UserError(f"{source}: a category name appears twice: {listed(twice)}; each must be unique.")
