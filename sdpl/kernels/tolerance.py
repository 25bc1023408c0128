"""How far two computations of the same scores may differ, by precision, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    score: float  # largest difference of a probability in 0..1
    map_drop: float  # largest loss of mAP, in points
    reason: str


TOLERANCES = {  # by precision of the encoder
    "fp32": Tolerance(
        score=1e-4,
        map_drop=0.1,
        reason="a float32 sum over a convolutional trunk differs by about 1e-5 relative when its order changes; "
        "1/tau multiplies that before the sigmoid, whose slope is at most 1/4",
    ),
    "fp16": Tolerance(
        score=0.02,
        map_drop=0.1,
        reason="each of some hundred layers rounds to 11 bits: a cosine may move by a few thousandths, and 1/tau = 10 "
        "at slope 1/4 makes 2.5 times that of a probability",
    ),
    "bf16": Tolerance(score=0.1, map_drop=0.5, reason="as float16 with 8 bits: eight times the rounding error"),
    "int8": Tolerance(
        score=0.15,
        map_drop=0.5,
        reason="a probability near its threshold moves with every quantised layer; what counts is the ranking, "
        "which --eval measures as mAP",
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
