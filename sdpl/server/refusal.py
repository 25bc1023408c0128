"""What a request can be refused for: one table of reasons with their HTTP status and gRPC code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One kind of refusal: its HTTP status, and the name of its gRPC code."""

    http: int
    grpc: str


REASONS = {
    "invalid": Reason(400, "INVALID_ARGUMENT"),
    "unauthorized": Reason(401, "UNAUTHENTICATED"),
    "forbidden": Reason(403, "PERMISSION_DENIED"),
    "not_found": Reason(404, "NOT_FOUND"),
    "method": Reason(405, "UNIMPLEMENTED"),
    "slow": Reason(408, "DEADLINE_EXCEEDED"),
    "too_large": Reason(413, "INVALID_ARGUMENT"),
    "unsupported": Reason(415, "INVALID_ARGUMENT"),
    "header": Reason(431, "INVALID_ARGUMENT"),
    "internal": Reason(500, "INTERNAL"),
    "overloaded": Reason(503, "RESOURCE_EXHAUSTED"),
    "unavailable": Reason(503, "UNAVAILABLE"),
    "deadline": Reason(504, "DEADLINE_EXCEEDED"),
    "cancelled": Reason(499, "CANCELLED"),
}


class RefusalError(Exception):
    """Why a request is not answered with scores. `kind` is a key of REASONS; the message is one line for the caller."""

    def __init__(self, kind: str, message: str, retry_after_s: int | None = None):
        super().__init__(" ".join(message.split()))
        self.kind, self.retry_after_s = kind, retry_after_s

    @property
    def reason(self) -> Reason:
        return REASONS[self.kind]
