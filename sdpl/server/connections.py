"""How many connections there is room for: each is an open file, of which a process may have only so many."""

import resource

FILES_EACH = 3  # of a connection: itself, one that is accepted only to be refused, and one of gRPC
FILES_BESIDE = 64  # open files of a front end beside its connections


def fitting(wanted: int) -> int:
    """At most so many connections of one front end, and no more than its files allow. Beyond that, asyncio could not
    even refuse them, and would do nothing but try."""
    return max(1, min(wanted, (_obtainable(wanted) - FILES_BESIDE) // FILES_EACH))


def ask_for_files(wanted: int) -> None:
    """Raise this process's limit of open files, usually 1,024 where nobody asks for more, to what they need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _obtainable(wanted)
    if soft != resource.RLIM_INFINITY and limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _obtainable(wanted: int) -> int:
    """As many open files as so many connections need, or as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_EACH * wanted + FILES_BESIDE
    return needed if hard == resource.RLIM_INFINITY else min(needed, hard)
