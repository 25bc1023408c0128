"""The manifest of a job: what is scored, how, and whether a folder's finished shards belong to the same job."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from sdpl import __version__
from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.preprocess import VERSION
from sdpl.scale.output import Counts, read_metadata
from sdpl.scale.plan import SCHEMA, Plan, other_inputs, resized
from sdpl.scale.storage import Store, is_url

FORMAT_VERSION = 1
JOB, INPUTS, LOCK = "job.json", "inputs.parquet", ".sdpl-score.lock"
MOMENT_S = 2  # until the process of a run that was killed is gone
FOOTERS = 16  # of finished shards, read at a time


@dataclass(frozen=True)
class Model:
    """What scores: equal on every worker, or their scores do not belong into one folder."""

    bundle_sha256: str
    target: str
    batch_size: int
    sdpl: str
    preprocessing: int

    @classmethod
    def of(cls, bundle: Bundle, target: str, batch_size: int) -> "Model":
        """Of an opened bundle: its files' hashes, thresholds and categories stand for it; later measurements do not."""
        parts = bundle.manifest.model_dump(mode="json", include={"files", "categories", "thresholds", "preprocessing"})
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cls(digest, target, batch_size, __version__, VERSION)

    def difference(self, other: "Model") -> str | None:
        """What differs, in words, or None."""
        return _difference(asdict(self), asdict(other))


@dataclass(frozen=True)
class Settings:
    """What else decides a file's content."""

    keep: str = "all"
    dtype: str = "float32"
    shard_size: int = 10_000
    image_column: str | None = None
    key_column: str | None = None
    embeddings: bool | None = None


@dataclass
class Job:
    """A job in its folder. id: is in every file of it; done: the finished shards; counts: of all of them."""

    id: str
    plan: Plan
    done: set[int]
    counts: Counts

    def finish(self, shard: int, counts: Counts) -> None:
        self.done.add(shard)
        self.counts += counts

    def todo(self) -> list[int]:
        return [index for index in range(len(self.plan)) if index not in self.done]


def open_job(store: Store, plan: Plan, model: Model, settings: Settings) -> Job:
    """Begin a job in a folder, or go on with the one that is there.

    Raises UserError that lists the differences when the folder holds another job, or when it holds other files.
    """
    names = store.names()
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": asdict(model),
        "settings": asdict(settings),
    }
    if JOB not in names:
        ours = {INPUTS} if INPUTS in names and _is_ours(store) else set()  # of a job that was killed as it began
        strange = sorted(name for name in names - ours if name.endswith(".parquet"))
        if strange:
            raise UserError(f"{store.location}: holds {strange[0]} but no {JOB}: choose another --out.")
        _write_inputs(store, plan)
        job_id = hashlib.sha256(json.dumps(content, sort_keys=True).encode() + _digest(plan)).hexdigest()
        with store.replace(JOB) as path:
            total = {"shards": len(plan), "inputs": plan.table.num_rows, "bytes": int(plan.sizes().sum())}
            path.write_text(json.dumps({"id": job_id, **content, **total}, indent=2) + "\n", encoding="utf-8")
        return Job(job_id, plan, set(), Counts())
    written = _read_json(store)
    found = [_difference(written.get(part, {}), content[part]) for part in ("model", "settings")]
    before, now = _read_inputs(store), plan.written()
    job = Job(written.get("id", ""), plan, set(), Counts())
    found += other_inputs(before, now)
    if not any(found):
        for shard, counts in _finished(store, job.id, names):
            job.finish(shard, counts)
        found += resized(before, now, job.done)
    changes = "; ".join(change for change in found if change)
    if changes:
        raise UserError(f"{store.location}: holds another job: {changes}. Choose another --out, or the same settings.")
    if before != now:  # unfinished inputs that were repaired
        _write_inputs(store, plan)
    return job


@contextmanager
def only_job(store: Store) -> Iterator[None]:
    """Refuse a second job in the same folder of this machine or a mounted one. Of a job that never began nothing stays.

    An object store has no locks: there two equal commands do the same work twice, and write the same files.
    """
    if is_url(store.location):
        yield
        return
    folder = Path(store.location)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out.") from None
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=MOMENT_S)
    except Timeout:
        raise UserError(f"{folder}: another sdpl-score is writing into this folder; wait for it.") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out.") from None
    try:
        yield
    finally:
        if not store.has(JOB):
            with suppress(OSError):
                (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):  # they hold something, as they should
            for path in made:
                path.rmdir()


def _finished(store: Store, job_id: str, names: set[str]) -> Iterator[tuple[int, Counts]]:
    """The shards that are there with their counts, after a look at each footer."""

    def look(name: str) -> tuple[int, Counts]:
        content = read_metadata(store, name)
        if content["job"] != job_id:
            raise UserError(f"{store.location}/{name}: belongs to another job; choose another --out.")
        return content["shard"], Counts(**content["counts"])

    written = sorted(name for name in names if name.startswith("shard-") and name.endswith(".parquet"))
    with ThreadPoolExecutor(FOOTERS) as pool:
        yield from pool.map(look, written)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return "; ".join(f"{_name(k)} was {_short(before.get(k))}, is now {_short(now.get(k))}" for k in changed) or None


def _name(key: str) -> str:
    options = {field.name for field in fields(Settings)}
    return "--" + key.replace("_", "-") if key in options else key.replace("_", " ")


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a hash


def _digest(plan: Plan) -> bytes:
    digest = hashlib.sha256()
    for name in plan.table["location"].to_pylist():
        digest.update(name + b"\0")
    return digest.digest()


def _write_inputs(store: Store, plan: Plan) -> None:
    with store.replace(INPUTS) as path, pa.OSFile(os.fsencode(path), "wb") as stream:  # a name may be not UTF-8
        pq.write_table(plan.written(), stream, compression="zstd")


def _read_json(store: Store) -> dict[str, Any]:
    try:
        with store.open(JOB) as stream:
            content: dict[str, Any] = json.loads(stream.read())
        version = content["format_version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{store.location}/{JOB}: cannot be read; choose another --out.") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{store.location}/{JOB}: its format version is {version}, this sdpl knows {FORMAT_VERSION}.")
    return content


def _is_ours(store: Store) -> bool:
    try:
        names: list[str] = _read_inputs(store).schema.names
    except UserError:
        return False
    return bool(names == SCHEMA.names)


def _read_inputs(store: Store) -> pa.Table:
    try:
        with store.open(INPUTS) as stream:
            return pq.read_table(pa.BufferReader(stream.read()))
    except (OSError, pa.ArrowInvalid):
        raise UserError(f"{store.location}/{INPUTS}: is missing or damaged; choose another --out.") from None
