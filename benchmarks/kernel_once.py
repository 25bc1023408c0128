"""Every kernel once on odd shapes, against the specification.

python benchmarks/kernel_once.py [--small]

--small: for compute-sanitizer, under which everything takes many times as long; the specification is then computed on
the CPU. Goes on after a wrong result; ends with status 1 when there was any.
"""

import sys

import torch

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import attention_logits as reference_scores
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import backward_deviations, departure, forward_deviations
from sdpl.kernels.torch_op import attention_logits, device_array

SMALL = (  # B, L, C, K, E
    (3, 50, 7, 300, 17),
    (2, 196, 81, 8, 40),
    (2, 56, 9, 512, 600),
    (1, 9, 21, 2080, 16),
    (2, 16, 9, 256, 40),  # two and four teams of warps, and more steps than locations
    (2, 36, 9, 64, 16),
    (2, 1, 1, 8, 1),
)
LARGE = (
    (1, 49, 80, 1024, 512),
    (8, 49, 500, 1024, 512),  # several tiles for a block, of every size on some GPU
)
DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this check needs a GPU; tests/kernels show what can be shown without one.")
    small = "--small" in sys.argv
    wrong = []
    for dtype in DTYPES:
        kernels = Kernels(dtype)
        for shape in SMALL if small else SMALL + LARGE:
            found = departures(kernels, dtype, shape, "cpu" if small else "cuda")
            wrong += found
            print(dtype, shape, *(found or ["ok"]), flush=True)
    if wrong:
        sys.exit(f"{len(wrong)} results are wrong")


def departures(kernels: Kernels, dtype: str, shape: tuple[int, ...], where: str) -> list[str]:
    """Of the kernels' results those that are too far from the specification, and why. It is computed on `where`."""
    B, L, C, K, E = shape
    generator, narrow = torch.Generator().manual_seed(0), getattr(torch, dtype)
    sizes = ((B, L, K), (C, K), (B, L, E), (K,), (C, E), (B, C, L))
    u, v, g, q, t, ds = (torch.randn(size, generator=generator) for size in sizes)
    u, v, g = (x.to(narrow) for x in (u, v, g))
    q, t = 3 * q / K**0.5, t / E**0.5  # scores of a few units, logits of about one
    doubles, weight = [x.double().to(where) for x in (u, v, q, g, t)], ds.double().to(where)
    u, v, q, g, t, ds, logits, attention = map(to_gpu, (u, v, q, g, t, ds, torch.empty(B, C), torch.empty(B, C, L)))
    kernels.forward(*(device_array(x) for x in (u, v, q, g, t, logits, attention)))
    inputs = [x.detach().requires_grad_() for x in (u, v, q)]
    gradients = torch.autograd.grad(attention_logits(*inputs), inputs, ds)
    torch.cuda.synchronize()

    deviations = forward_deviations(*doubles)
    expected, weights = bilinear_attention_pool(*doubles)
    right = [("logits", logits, expected, deviations.logits), ("attention", attention, weights, deviations.attention)]
    derived = backward_deviations(*doubles[:3], weight)
    exact = [x.requires_grad_() for x in doubles[:3]]
    theirs = torch.autograd.grad(reference_scores(*exact), exact, weight)
    rounding = torch.finfo(narrow).eps  # gradients of u and v come in the inputs' dtype
    for name, ours, specified, deviation in zip(("du", "dv", "dq"), gradients, theirs, derived, strict=True):
        right.append((name, ours, specified, deviation + rounding * specified.abs()))
    found = []
    for name, ours, specified, deviation in right:
        why = departure(ours.double().to(where), specified, deviation)
        if why is not None:
            found.append(f"{name}: {why}")
    return found


def to_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.cuda()


if __name__ == "__main__":
    main()
