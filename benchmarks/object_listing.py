"""A million keys of an object store to shards: seconds and memory of the one process that plans.

    python benchmarks/object_listing.py [--keys 1000000] [--out FILE.json]          # needs s3fs

The server is this file too: it answers S3's ListObjectsV2, pages of 1,000 keys, through HTTP on this machine, and does
nothing else. (moto's server looks at all keys for each page, which takes longer than all that is measured here.)
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click

PAGE = 1000
KEY = (
    "<Contents><Key>photos/{0:09d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{0:032x}&quot;</ETag><Size>160000</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Lists(BaseHTTPRequestHandler):
    """ListObjectsV2 of `keys` keys under photos/."""

    protocol_version = "HTTP/1.1"
    keys = 0

    def do_GET(self) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])
        end = min(start + PAGE, self.keys)
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>"
        content = "".join(map(KEY.format, range(start, end)))
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><Prefix>photos/</Prefix><KeyCount>{end - start}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"{more if end < self.keys else '<IsTruncated>false</IsTruncated>'}{content}</ListBucketResult>"
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        """Nothing."""


@click.command()
@click.option("--keys", default=1_000_000)
@click.option("--serve", is_flag=True, hidden=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(keys: int, serve: bool, out: Path | None) -> None:
    """See the text at the head of this file."""
    if serve:
        Lists.keys = keys
        server = ThreadingHTTPServer(("127.0.0.1", 0), Lists)
        print(server.server_address[1], flush=True)
        server.serve_forever()
    words = [sys.executable, __file__, "--serve", "--keys", str(keys)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            result = measure(int(process.stdout.readline()))
        finally:
            process.terminate()
    text = json.dumps(result, indent=2) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def measure(port: int) -> dict[str, object]:
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import s3fs

    from sdpl.runtime.environment import environment, peak_memory_mb
    from sdpl.scale.plan import make_plan

    resident = resident_mb()
    before, begin, cpu = peak_memory_mb() or 0, time.perf_counter(), time.process_time()
    plan, _ = make_plan(["s3://bucket/photos/"], recursive=True, shard_size=10_000)
    return {
        "environment": environment(),
        "s3fs": s3fs.__version__,
        "keys": plan.table.num_rows,
        "shards": len(plan),
        "pages": -(-plan.table.num_rows // PAGE),
        "load_average": os.getloadavg(),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "memory_mb": (peak_memory_mb() or 0) - before,
        "kept_mb": resident_mb() - resident,
        "table_mb": plan.table.nbytes / 1e6,
    }


if __name__ == "__main__":
    main()
