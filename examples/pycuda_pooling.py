"""Bilinear attention pooling between PyCUDA arrays, checked against the specification.

    pip install ".[pycuda]"    # in a checkout
    python examples/pycuda_pooling.py

u and g stand for what an encoder engine of yours wrote; v, q and t are the head's constants, which a bundle with a GPU
target keeps in head.safetensors.
"""

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401  (makes the device's primary context current)
from pycuda import driver, gpuarray

from sdpl.kernels.pycuda_launch import PyCudaKernels
from sdpl.kernels.reference import bilinear_attention_pool

B, L, C, K, E = 8, 49, 80, 1024, 512

rng = np.random.default_rng(0)
u, g = (rng.standard_normal((B, L, n)).astype(np.float16) for n in (K, E))  # [B,L,K], [B,L,E]
v = rng.standard_normal((C, K)).astype(np.float16)  # [C,K]
q = (rng.standard_normal(K) / K**0.5).astype(np.float32)  # [K]
t = (rng.standard_normal((C, E)) / E**0.5).astype(np.float32)  # [C,E]

kernels = PyCudaKernels("float16")
stream = driver.Stream()
on_device = [gpuarray.to_gpu(array) for array in (u, v, q, g, t)]
logits = gpuarray.empty((B, C), np.float32)  # [B,C]
attention = gpuarray.empty((B, C, L), np.float32)  # [B,C,L]
kernels.forward(*on_device, logits, attention, stream=stream)
stream.synchronize()

expected, _ = bilinear_attention_pool(*(array.astype(np.float64) for array in (u, v, q, g, t)))
print(f"largest difference from the specification: {np.abs(logits.get() - expected).max():.1e}")
