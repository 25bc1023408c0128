"""How far two computations of the same scores may differ, by precision, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    score: float  # largest difference of a probability in 0..1
    reason: str


TOLERANCES = {
    "float32": Tolerance(
        score=1e-4,
        reason="a float32 sum over a convolutional trunk differs by about 1e-5 relative when its order changes; "
        "1/tau multiplies that before the sigmoid, whose slope is at most 1/4",
    ),
}
