"""Every kernel once on odd shapes, against the specification; small, for compute-sanitizer.

compute-sanitizer --tool racecheck python benchmarks/kernel_once.py
"""

import sys

import torch

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import KERNEL
from sdpl.kernels.torch_op import attention_scores, device_array

SHAPES = ((1, 49, 80, 1024, 512), (3, 50, 7, 300, 17), (2, 196, 81, 8, 40), (2, 1, 1, 8, 1))  # B, L, C, K, E


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this check needs a GPU")
    for dtype in ("float32", "float16", "bfloat16"):
        kernels, narrow = Kernels(dtype), getattr(torch, dtype)
        for B, L, C, K, E in SHAPES:
            generator = torch.Generator("cuda").manual_seed(0)
            u, v, g = (
                torch.randn(s, generator=generator, device="cuda").to(narrow) for s in ((B, L, K), (C, K), (B, L, E))
            )
            q, t = (torch.randn(s, generator=generator, device="cuda") for s in ((K,), (C, E)))
            logits, attention = torch.empty(B, C, device="cuda"), torch.empty(B, C, L, device="cuda")
            arrays = [device_array(x) for x in (u, v, q, g, t, logits, attention)]
            kernels.forward(*arrays)
            torch.cuda.synchronize()
            expected, _ = bilinear_attention_pool(*(x.double() for x in (u, v, q, g, t)))
            allowed = KERNEL.relative * (1 + q.abs().sum() * t.norm(dim=1).max()).item()
            assert (logits - expected).abs().max().item() <= allowed, (dtype, B, L, C, K, E)
            inputs = [x.requires_grad_() for x in (u, v, q)]
            attention_scores(*inputs).sum().backward()
            torch.cuda.synchronize()
            print(dtype, (B, L, C, K, E), "ok")


if __name__ == "__main__":
    main()
