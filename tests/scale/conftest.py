"""Shards on disk, made of the scenes' pictures."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def photos(scenes) -> list[Path]:
    """24 pictures."""
    return sorted((scenes / "train").iterdir())


@pytest.fixture(scope="session")
def write_tar():
    """Writes (name, bytes) pairs as a tar file."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture(scope="session")
def tars(tmp_path_factory, photos, write_tar) -> list[Path]:
    """Six tar files of four pictures each, with a text beside each picture, as WebDataset has them."""
    folder = tmp_path_factory.mktemp("tars")
    written = []
    for i in range(6):
        members = []
        for photo in photos[4 * i : 4 * i + 4]:
            members += [(photo.name, photo.read_bytes()), (f"{photo.stem}.txt", b"seven")]
        written.append(write_tar(folder / f"{i:03d}.tar", members))
    return written


@pytest.fixture(scope="session")
def rows():
    """All rows of an output folder by (source, key), each source and key once."""

    def read(out: Path) -> dict[tuple[str, str], dict]:
        table = pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("shard-*.parquet"))])
        found = {(row["source"], row["key"]): row for row in table.to_pylist()}
        assert len(found) == table.num_rows
        return found

    return read
