"""How far the kernel's results may be from the specification, and why. A target's limits: `sdpl.targets.PRECISIONS`."""

from dataclasses import dataclass


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
