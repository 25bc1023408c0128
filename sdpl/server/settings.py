"""How a server is set up: everything that `sdpl-serve` was told, as plain values that go to its processes."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Times in the unit of their name; sizes in bytes, for each front end where not said otherwise."""

    models: dict[str, str]  #: name -> absolute path of its bundle
    devices: tuple[str, ...] = ("auto",)  #: one engine process each: "auto", "cpu" or a GPU's number
    workers: int = 1  #: front-end processes
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001  #: None: no gRPC
    backend: str = "auto"
    precision: str | None = None
    threads: int | None = None  #: of an engine, on a CPU
    streams: int | None = None
    max_batch: int | None = None
    max_delay_ms: float = 0.0
    max_wait_ms: float = 10_000.0  #: beyond this estimated wait, requests are refused
    timeout_ms: float = 30_000.0  #: of a request that names no deadline of its own
    queue_bytes: int = 256 * MIB  #: of images waiting or running and their results, all front ends together
    max_body: int = 64 * MIB
    max_json: int = 16 * MIB  #: of tensors written as JSON numbers or base64
    max_connections: int = 1024  #: all front ends together
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    min_bytes_per_s: int = 16_384  #: a body that comes slower than this, after `header_timeout_s`, is cut off
    drain_s: float = 30.0
    hung_after_s: float = 60.0  #: a process that does not get on for so long is started again; 0: never
    skip_proof: bool = False
    allow_repository: bool = False
    watch_s: float = 1.0  #: how often bundles on disk are looked at; 0: never
    access_log: str | None = None  #: a path, or "-" for standard output
    token: str | None = field(default=None, repr=False)
    tls_certificate: str | None = None
    tls_key: str | None = None
    otlp_endpoint: str | None = None

    @property
    def arena_bytes(self) -> int:
        """Of the slots of one front end for one model on one engine."""
        return self.queue_bytes // (self.workers * len(self.models) * len(self.devices))

    @property
    def connections_each(self) -> int:
        """Of one front end, where its files allow them."""
        return max(1, self.max_connections // self.workers)

    @property
    def bodies_bytes(self) -> int:
        """Of the HTTP bodies that one front end has in hand; two of the largest have room, however many front ends."""
        return max(self.queue_bytes // self.workers, 2 * self.max_body)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "devices": tuple(values["devices"])})
