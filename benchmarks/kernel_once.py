"""Every kernel once on odd shapes, against the specification; small, for compute-sanitizer.

compute-sanitizer --tool racecheck python benchmarks/kernel_once.py
"""

import sys

import torch

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import attention_logits as reference_scores
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import backward_deviations, departure, forward_deviations
from sdpl.kernels.torch_op import attention_logits, device_array

SHAPES = (  # B, L, C, K, E
    (1, 49, 80, 1024, 512),
    (8, 49, 500, 1024, 512),  # several tiles for a block, of every size on some GPU
    (3, 50, 7, 300, 17),
    (2, 196, 81, 8, 40),
    (2, 56, 9, 512, 600),
    (1, 9, 21, 2080, 16),
    (2, 1, 1, 8, 1),
)


def expect(actual: torch.Tensor, right: torch.Tensor, deviation: torch.Tensor, name: str, where: tuple) -> None:
    why = departure(actual.double(), right, deviation)
    if why is not None:
        raise SystemExit(f"{name} of {where}: {why}")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this check needs a GPU; tests/kernels show what can be shown without one.")
    for dtype in ("float32", "float16", "bfloat16"):
        kernels, narrow = Kernels(dtype), getattr(torch, dtype)
        for B, L, C, K, E in SHAPES:
            generator = torch.Generator("cuda").manual_seed(0)
            sizes = ((B, L, K), (C, K), (B, L, E), (K,), (C, E))
            u, v, g, q, t = (torch.randn(size, generator=generator, device="cuda") for size in sizes)
            u, v, g = (x.to(narrow) for x in (u, v, g))
            q, t = 3 * q / K**0.5, t / E**0.5  # scores of a few units, logits of about one
            logits, attention = torch.empty(B, C, device="cuda"), torch.empty(B, C, L, device="cuda")
            arrays = [device_array(x) for x in (u, v, q, g, t, logits, attention)]
            kernels.forward(*arrays)
            torch.cuda.synchronize()
            where = (dtype, B, L, C, K, E)
            doubles = [x.double() for x in (u, v, q, g, t)]
            expected, weights = bilinear_attention_pool(*doubles)
            deviations = forward_deviations(*doubles)
            expect(attention, weights, deviations.attention, "attention", where)
            expect(logits, expected, deviations.logits, "logits", where)
            inputs = [x.detach().requires_grad_() for x in (u, v, q)]
            exact = [x.detach().double().requires_grad_() for x in (u, v, q)]
            ds = torch.randn(B, C, L, generator=generator, device="cuda")
            ours = torch.autograd.grad(attention_logits(*inputs), inputs, ds)
            theirs = torch.autograd.grad(reference_scores(*exact), exact, ds.double())
            rounding = torch.finfo(narrow).eps  # gradients of u and v come in the inputs' dtype
            derived = backward_deviations(*doubles[:3], ds.double())
            for a, b, deviation in zip(ours, theirs, derived, strict=True):
                expect(a, b, deviation + rounding * b.abs(), "gradient", where)
            torch.cuda.synchronize()
            print(dtype, (B, L, C, K, E), "ok")


if __name__ == "__main__":
    main()
