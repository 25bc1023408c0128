"""s3:// against a real S3 server on this machine (moto's), through s3fs."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest

MISSING = [name for name in ("s3fs", "moto", "flask") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install s3fs 'moto[server]'"),
]


@pytest.fixture(scope="module")
def s3(tars, photos):
    """A bucket with six tar shards and four photos, and the variables that lead to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        names = [*(f"shards/{path.name}" for path in tars), *(f"photos/{path.name}" for path in photos[:4])]
        files = [*map(str, tars), *map(str, photos[:4])]
        code = (
            "import sys, s3fs; fs = s3fs.S3FileSystem(); fs.mkdir('bucket')\n"
            "for name, path in zip(sys.argv[1::2], sys.argv[2::2]): fs.put_file(path, 'bucket/' + name)"
        )
        pairs = [word for pair in zip(names, files, strict=True) for word in pair]
        subprocess.run([sys.executable, "-c", code, *pairs], env=environment, check=True)
        yield environment
    finally:
        server.terminate()
        server.wait()


def score(environment, *words):
    start = "import sys; from sdpl.cli import main; main(['score', *sys.argv[1:]])"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, words)], env=environment, capture_output=True, text=True
    )


def test_from_a_bucket_into_a_bucket(bundle, tars, s3, rows, tmp_path):
    here = score(s3, bundle, *tars, "--out", tmp_path / "here")
    assert here.returncode == 0, here.stderr
    words = [bundle, "s3://bucket/shards/", "s3://bucket/photos", "--out", "s3://bucket/out"]
    first = score(s3, *words)
    assert first.returncode == 0, first.stderr
    assert "7 of 7 shards, 28 images, 0 with an error" in first.stdout
    again = score(s3, *words)
    assert "finished by earlier runs: 7 shards" in again.stdout
    code = "import sys, s3fs; s3fs.S3FileSystem().get('bucket/out', sys.argv[1], recursive=True)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fetched")], env=s3, check=True)
    fetched = {key: row["scores"] for (_, key), row in rows(tmp_path / "fetched").items() if "://" not in key}
    assert fetched == {key: row["scores"] for (_, key), row in rows(tmp_path / "here").items()}
    photos = pq.read_table(tmp_path / "fetched" / "shard-000000.parquet")
    assert photos["key"][0].as_py() == "s3://bucket/photos/000000.jpg"


def test_missing_buckets_and_keys(bundle, s3, tmp_path):
    (tmp_path / "list.txt").write_text("s3://bucket/photos/000000.jpg\ns3://bucket/photos/gone.jpg\n")
    gone = ["s3://no-such-bucket/shards/", "s3://bucket/no-such-prefix/", "s3://bucket/shards/9.tar"]
    out = str(tmp_path / "out")
    calls = [[str(bundle), url, "--out", out] for url in gone]
    calls += [[str(bundle), "s3://bucket/photos/", "--out", "s3://no-such-bucket/out"]]
    calls += [[str(bundle), f"@{tmp_path / 'list.txt'}", "--out", out]]
    code = (
        "import json, sys; from click.testing import CliRunner; from sdpl.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(main, ['score', *words])\n"
        "    print(json.dumps([result.exit_code, result.stderr]))"
    )
    run = subprocess.run([sys.executable, "-c", code, json.dumps(calls)], env=s3, capture_output=True, text=True)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [status for status, _ in results] == [2, 2, 2, 2, 0]
    for (_, stderr), place in zip(results, [*gone, "s3://no-such-bucket/out", ""], strict=False):
        assert stderr.count("\n") == bool(place), stderr
        assert place in stderr
    errors = pq.read_table(tmp_path / "out" / "shard-000000.parquet")["error"].to_pylist()
    assert errors[0] is None
    assert "there is no such file, bucket or key" in errors[1]


def test_a_server_that_is_gone_fails_the_shard_and_calls_no_image_bad(bundle, s3, tmp_path):
    (tmp_path / "list.txt").write_text("s3://bucket/photos/000000.jpg\n")
    lost = {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    result = score(lost, bundle, f"@{tmp_path / 'list.txt'}", "--out", tmp_path / "out", "--tries", 1)
    assert result.returncode == 2
    assert "cannot be read" in result.stderr
    assert "1 of 1 shards failed" in result.stderr
    assert not list((tmp_path / "out").glob("shard-*"))
