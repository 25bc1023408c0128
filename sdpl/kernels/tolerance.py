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


@dataclass(frozen=True)
class KernelTolerance:
    relative: float  # of the sum of the absolute terms of a result
    relative_gradient: float
    reason: str


KERNEL = KernelTolerance(
    relative=1.25 / 2048,
    relative_gradient=2.25 / 2048,
    reason="tanh.approx.f32 is off by up to about 2^-11 of each tanh, whatever the inputs' dtype, whose rounding is "
    "no error of the kernel; the derivative 1 - tanh^2 doubles that error; a quarter more for float32 sums and for "
    "second-order terms",
)
