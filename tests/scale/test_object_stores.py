"""s3:// and gs:// against servers on this machine (moto's, and gcp-storage-emulator), through s3fs and gcsfs."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Kind:
    """Of object stores. needs: modules; hint: what brings them; server: its command but for host and port."""

    scheme: str
    needs: tuple[str, ...]
    hint: str
    server: tuple[str, ...]
    url_variable: str
    variables: dict[str, str]


KINDS = [
    Kind(
        "s3",
        ("s3fs", "moto", "flask"),
        "s3fs 'moto[server]'",
        ("moto.server", "-H"),
        "AWS_ENDPOINT_URL",
        {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"},
    ),
    Kind(
        "gs",
        ("gcsfs", "gcp_storage_emulator"),
        "gcsfs gcp-storage-emulator",
        ("gcp_storage_emulator", "start", "--in-memory", "--host"),
        "STORAGE_EMULATOR_HOST",
        # the emulator has no gRPC, by which gcsfs would ask what kind of bucket it is
        {"FSSPEC_GS_TOKEN": "anon", "FSSPEC_GS_PROJECT": "p", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
    ),
]


@dataclass(frozen=True)
class Store:
    """A server with a bucket: six tar shards and four photos. environment: leads to it."""

    kind: Kind
    environment: dict[str, str]

    def url(self, path):
        return f"{self.kind.scheme}://{path}"

    def run(self, code, *words):
        code = f"import sys, fsspec; fs = fsspec.filesystem({self.kind.scheme!r})\n{code}"
        subprocess.run([sys.executable, "-c", code, *map(str, words)], env=self.environment, check=True)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.scheme)
def store(request, tars, photos):
    kind = request.param
    missing = [name for name in kind.needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install {kind.hint}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", *kind.server, "127.0.0.1", "--port" if kind.scheme == "gs" else "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        opened = Store(kind, {**os.environ, kind.url_variable: url, **kind.variables})
        names = [*(f"shards/{path.name}" for path in tars), *(f"photos/{path.name}" for path in photos[:4])]
        pairs = zip(names, [*tars, *photos[:4]], strict=True)
        code = (
            "fs.mkdir('bucket')\n"
            "for name, path in zip(sys.argv[1::2], sys.argv[2::2]): fs.put_file(path, 'bucket/' + name)"
        )
        opened.run(code, *(word for pair in pairs for word in pair))
        yield opened
    finally:
        server.terminate()
        server.wait()


def score(store, *words):
    start = "import sys; from sdpl.cli import main; main(['score', *sys.argv[1:]])"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, words)], env=store.environment, capture_output=True, text=True
    )


def test_from_a_bucket_into_a_bucket(bundle, tars, store, rows, tmp_path):
    here = score(store, bundle, *tars, "--out", tmp_path / "here")
    assert here.returncode == 0, here.stderr
    words = [bundle, store.url("bucket/shards/"), store.url("bucket/photos"), "--out", store.url("bucket/out")]
    first = score(store, *words)
    assert first.returncode == 0, first.stderr
    assert "7 of 7 shards, 28 images, 0 with an error" in first.stdout
    again = score(store, *words)
    assert "finished by earlier runs: 7 shards" in again.stdout
    store.run("fs.get('bucket/out', sys.argv[1], recursive=True)", tmp_path / "fetched")
    fetched = {key: row["scores"] for (_, key), row in rows(tmp_path / "fetched").items() if "://" not in key}
    assert fetched == {key: row["scores"] for (_, key), row in rows(tmp_path / "here").items()}
    photos = pq.read_table(tmp_path / "fetched" / "shard-000000.parquet")
    assert photos["key"][0].as_py() == store.url("bucket/photos/000000.jpg")


def test_missing_buckets_and_keys(bundle, store, tmp_path):
    (tmp_path / "list.txt").write_text("".join(store.url(f"bucket/photos/{name}.jpg\n") for name in ("000000", "gone")))
    gone = [store.url(path) for path in ("no-such-bucket/shards/", "bucket/no-such-prefix/", "bucket/shards/9.tar")]
    out = str(tmp_path / "out")
    calls = [[str(bundle), url, "--out", out] for url in gone]
    calls += [[str(bundle), store.url("bucket/photos/"), "--out", store.url("no-such-bucket/out")]]
    calls += [[str(bundle), f"@{tmp_path / 'list.txt'}", "--out", out]]
    code = (
        "import json, sys; from click.testing import CliRunner; from sdpl.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(main, ['score', *words])\n"
        "    print(json.dumps([result.exit_code, result.stderr]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], env=store.environment, capture_output=True, text=True
    )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [status for status, _ in results] == [2, 2, 2, 2, 0]
    for (_, stderr), place in zip(results, [*gone, store.url("no-such-bucket/out"), ""], strict=False):
        assert stderr.count("\n") == bool(place), stderr
        assert place in stderr
    errors = pq.read_table(tmp_path / "out" / "shard-000000.parquet")["error"].to_pylist()
    assert errors[0] is None
    assert "there is no such file, bucket or key" in errors[1]


def test_a_server_that_is_gone_fails_the_shard_and_calls_no_image_bad(bundle, store, tmp_path):
    (tmp_path / "list.txt").write_text(store.url("bucket/photos/000000.jpg\n"))
    nowhere = {store.kind.url_variable: "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    lost = replace(store, environment=store.environment | nowhere)
    result = score(lost, bundle, f"@{tmp_path / 'list.txt'}", "--out", tmp_path / "out", "--tries", 1)
    assert result.returncode == 2
    assert "cannot be read" in result.stderr
    assert "1 of 1 shards failed" in result.stderr
    assert not list((tmp_path / "out").glob("shard-*"))
