"""Which bundles on disk the engines have yet to take."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdpl.server.serving import manifest_hash

Files = tuple[tuple[str, int, int], ...]  # relative path, size, time of the last change in ns
UNTAKEN = ("cache",)  # what the serving machine writes into a bundle
LOOKS = 2  # in a row that say the same: a rename has two moments, and who copies has not ended


@dataclass
class _Seen:
    """One bundle. manifest, files: when the engines were last told; last_files: at the last look."""

    manifest: int
    files: Files
    last_files: Files
    refused_by: set[int] = field(default_factory=set)  # engines
    gone: int = 0


class Watch:
    """Looks at bundles again and again. One that is replaced at once is taken at the next look; one that was refused
    is tried again when its files have changed and rest, since it may have been copied file by file."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._seen = [_Seen(manifest_hash(path), files := files_of(path), files) for path in paths]

    def refused(self, model: int, engine: int = 0) -> None:
        """An engine did not take the bundle that was found last."""
        self._seen[model].refused_by.add(engine)

    def settled(self, model: int, engine: int = 0) -> None:
        """An engine has taken it, or is to serve none."""
        self._seen[model].refused_by.discard(engine)

    def look(self) -> Iterator[tuple[int, bool, str]]:
        """Of each model that has changed: its number, whether it is to be loaded again, and a line for the log."""
        for model, (path, seen) in enumerate(zip(self._paths, self._seen, strict=True)):
            manifest, files = manifest_hash(path), files_of(path)
            rests = files == seen.last_files
            seen.last_files = files
            if not manifest:
                seen.gone += 1
                if seen.gone == LOOKS:
                    yield model, False, f"{path} is gone: the model is served on, but this server cannot start again"
                continue
            seen.gone = 0
            if manifest != seen.manifest:
                line = f"{path} was replaced: it is being proved"
            elif seen.refused_by and rests and files != seen.files:
                line = f"{path}: its files have changed: it is tried again"
            else:
                continue
            seen.manifest, seen.files = manifest, files
            seen.refused_by.clear()
            yield model, True, line


def files_of(path: str) -> Files:
    """What a bundle's folder holds; of a folder that is being changed, what was found."""
    found: list[tuple[str, int, int]] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in UNTAKEN]
        for name in names:
            file = Path(folder, name)
            try:
                about = file.stat()
            except OSError:
                continue
            found.append((str(file.relative_to(path)), about.st_size, about.st_mtime_ns))
    return tuple(sorted(found))
