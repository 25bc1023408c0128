"""Every kernel once on odd shapes, against the specification; small, for compute-sanitizer.

compute-sanitizer --tool racecheck python benchmarks/kernel_once.py
"""

import sys

import torch

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import attention_logits as reference_scores
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import KERNEL
from sdpl.kernels.torch_op import attention_logits, device_array

SHAPES = ((1, 49, 80, 1024, 512), (3, 50, 7, 300, 17), (2, 196, 81, 8, 40), (2, 1, 1, 8, 1))  # B, L, C, K, E


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this check needs a GPU")
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
            expected, weights = bilinear_attention_pool(*(x.double() for x in (u, v, q, g, t)))
            # the tanh unit's errors are as good as random over K: their sum grows with its root, not with K
            noise = 8 * KERNEL.relative * q.norm().item()
            assert (attention - weights).abs().max().item() <= noise, ("attention", dtype, B, L, C, K, E)
            assert (logits - expected).abs().max().item() <= noise * t.norm(dim=1).max().item(), (dtype, B, L, C, K, E)
            inputs = [x.detach().requires_grad_() for x in (u, v, q)]
            exact = [x.detach().double().requires_grad_() for x in (u, v, q)]
            ds = torch.randn(B, C, L, generator=generator, device="cuda")
            ours = torch.autograd.grad(attention_logits(*inputs), inputs, ds)
            theirs = torch.autograd.grad(reference_scores(*exact), exact, ds.double())
            for a, b in zip(ours, theirs, strict=True):
                assert (a.double() - b).norm() <= 0.02 * b.norm(), ("gradient", dtype, B, L, C, K, E)
            torch.cuda.synchronize()
            print(dtype, (B, L, C, K, E), "ok")


if __name__ == "__main__":
    main()
