"""The CUDA kernel on one GPU, beside what it replaces and beside what the GPU can do at most; all in one run.

    python benchmarks/kernel.py [--out docs/benchmarks/kernel-NAME.json] [--seconds 480] [--quick]

Rows are written as they come. It ends with status 3 when the time was not enough: call again to go on.

Sides: this kernel; the research formulation; the folded formula in PyTorch eager (one category at a time, as the
reference) and under torch.compile with max-autotune (all categories in one expression, for the compiler to fuse).
Ceilings: the rate of the tanh unit, by a kernel that does nothing else, and the device memory's bandwidth, by a copy.
Every time is device time: many calls between two CUDA events, this kernel's inside a CUDA graph.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from research import ResearchHead
from results import Results

from sdpl.kernels.compile import cubin
from sdpl.kernels.driver import call, context
from sdpl.kernels.launch import Kernels, supported
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import departure, forward_deviations
from sdpl.kernels.torch_op import attention_logits, device_array
from sdpl.runtime.environment import clock_mhz, environment

DEVICE = "cuda"
K, E = 1024, 512
GRID = list(
    itertools.product((20, 80, 500, 9600), (1, 8, 32, 128), (49, 196), ("float16", "float32"))
)  # C, B, L, dtype
COMPILED = ((80, 1), (80, 8), (80, 32), (500, 8))  # C, B where torch.compile runs: max-autotune takes minutes for each
POLYNOMIAL = 2  # of every 8 tanh, by polynomial, in the rows of that name
IN_GRAPH = 20  # launches of a small shape in one graph
TANH_CHAINS, TANH_STEPS = 8, 4096  # per thread of the ceiling's kernel
TANH_SOURCE = f"""
extern "C" __global__ void tanh_rate(float* out) {{
  float x[{TANH_CHAINS}];
  for (int i = 0; i < {TANH_CHAINS}; i++) x[i] = threadIdx.x * 1e-3f + i;
  for (int step = 0; step < {TANH_STEPS}; step++)
#pragma unroll
    for (int i = 0; i < {TANH_CHAINS}; i++) asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x[i]));
  float sum = 0;
  for (int i = 0; i < {TANH_CHAINS}; i++) sum += x[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}}
"""


def device_us(call: Callable[[], object], calls: int = 20, rounds: int = 7) -> float:
    """Median device time of one call in microseconds, after a warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / calls)
    return float(np.median(times))


def in_graph(call: Callable[[int], None], times: int) -> Callable[[], None]:
    """The call, given a stream's address, so many times in one CUDA graph, as its replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(stream.cuda_stream)  # loads the kernel: not allowed while capturing
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(times):
            call(stream.cuda_stream)
    return graph.replay


def tanh_per_s() -> float:
    """The most tanh.approx.f32 a second that this GPU reaches."""
    import ctypes

    from cuda.core import Program, ProgramOptions

    here = context(torch.cuda.current_device())
    options = ProgramOptions(arch=f"sm_{here.capability}", std="c++17")
    code = bytes(Program(TANH_SOURCE, "c++", options).compile("cubin").code)
    blocks, threads = 8 * here.attribute("MULTIPROCESSOR_COUNT"), 256
    out = torch.empty(blocks * threads, device=DEVICE)
    kernel = call("cuModuleGetFunction", call("cuModuleLoadData", code), b"tanh_rate")
    arguments, stream = ((out.data_ptr(),), (ctypes.c_void_p,)), torch.cuda.current_stream().cuda_stream
    us = device_us(lambda: call("cuLaunchKernel", kernel, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, 0))
    return blocks * threads * TANH_CHAINS * TANH_STEPS / us * 1e6


def bytes_per_s() -> float:
    """Device-memory bandwidth, read and written, of a 1 GiB copy."""
    source = torch.empty(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / device_us(lambda: target.copy_(source)) * 1e6


def operands(C: int, B: int, L: int, dtype: str) -> list[torch.Tensor]:
    """u, v, q, g, t of usual sizes."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator, device=DEVICE)  # noqa: E731
    narrow = getattr(torch, dtype)
    q, t = 3 * make(K) / K**0.5, 10 * make(C, E) / E**0.5  # [K], [C,E]
    return [make(B, L, K).to(narrow), make(C, K).to(narrow), q, make(B, L, E).to(narrow), t]


def folded(u, v, q, g, t):
    """The operator in one expression, for a compiler that fuses: logits [B,C]."""
    s = (torch.tanh(u[:, None] * v[None, :, None]).float() * q).sum(-1)  # [B,C,L]
    e = s.softmax(-1) @ g.float()  # [B,C,E]
    return (e * t).sum(-1) / e.norm(dim=-1).clamp(min=1e-6)


def attempt(call: Callable[[], object], calls: int) -> float | str:
    """Device time in us, or why there is none."""
    try:
        return device_us(call, calls, rounds=3)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    except Exception as error:  # a compiler that fails on another side is no reason to lose this one
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@torch.inference_mode()
def one_shape(C: int, B: int, L: int, dtype: str, kernels: Kernels, ceiling: float, polynomial: Kernels | None) -> dict:
    """Times of one shape; "wrong" says what is too far from the specification."""
    u, v, q, g, t = operands(C, B, L, dtype)
    logits = torch.empty(B, C, device=DEVICE)
    views = [device_array(x) for x in (u, v, q, g, t, logits)]
    kernels.forward(*views)
    torch.cuda.synchronize()
    some = slice(0, min(C, 128))
    doubles = [x.double() for x in (u[:2], v[some], q, g[:2], t[some])]
    expected = bilinear_attention_pool(*doubles)[0]
    actual = logits[:2, some].double()
    difference = (actual - expected).abs().max().item()
    wrong = {"kernel": departure(actual, expected, forward_deviations(*doubles).logits)}
    launches = IN_GRAPH if C * B * L < 1e6 else 1  # launching a graph would outlast a small kernel
    us = device_us(in_graph(lambda stream: kernels.forward(*views, stream=stream), launches)) / launches
    row = {"C": C, "B": B, "L": L, "dtype": dtype, "kernel_us": us, "difference": difference, "clock_mhz": clock_mhz()}
    if polynomial is not None:
        row["polynomial_us"] = (
            device_us(in_graph(lambda stream: polynomial.forward(*views, stream=stream), launches)) / launches
        )
        row["polynomial_share_of_tanh_ceiling"] = B * C * L * K / (row["polynomial_us"] * 1e-6) / ceiling
        actual = logits[:2, some].double()
        deviations = forward_deviations(*doubles, polynomial=POLYNOMIAL)
        wrong["polynomial"] = departure(actual, expected, deviations.logits)
        row["polynomial_difference"] = (actual - expected).abs().max().item()
    row["one_launch_in_a_graph_us"] = device_us(in_graph(lambda stream: kernels.forward(*views, stream=stream), 1))
    row["share_of_tanh_ceiling"] = B * C * L * K / (us * 1e-6) / ceiling
    few = 1 if C * B * L > 1e6 else 3
    row["folded_eager_us"] = attempt(lambda: bilinear_attention_pool(u, v, q.to(u.dtype), g, t.to(u.dtype)), few)
    head = ResearchHead(C).to(DEVICE, u.dtype)
    f = torch.randn(B, L, 2048, device=DEVICE, dtype=u.dtype)
    fits = B * C * L * K * u.element_size() * 3 < torch.cuda.mem_get_info()[0]
    row["research_us"] = attempt(lambda: head(f), few) if fits else "does not fit into the GPU's memory"
    wrong = {side: why for side, why in wrong.items() if why is not None}
    return row | ({"wrong": wrong} if wrong else {})


@torch.inference_mode()
def compiled_us(C: int, B: int) -> float | str:
    """The folded formula under torch.compile, L=49, float16."""
    u, v, q, g, t = operands(C, B, 49, "float16")
    compiled = torch.compile(folded, mode="max-autotune", dynamic=False)
    return attempt(lambda: compiled(u, v, q, g, t), 20)


def training(B: int = 64, C: int = 80, L: int = 49) -> dict:
    """Forward and backward of the attention scores: this operator, and the research formulation under autograd."""

    def once(score: Callable) -> dict:
        u = torch.randn(B, L, K, device=DEVICE, requires_grad=True)
        v, q = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((C, K), (K,)))
        joint = torch.nn.Linear(K, K).to(DEVICE)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call = lambda: score(u, v, q, joint).sum().backward()  # noqa: E731
        us = device_us(call, calls=3, rounds=3)
        return {"ms": us / 1000, "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}

    ours = once(lambda u, v, q, joint: attention_logits(u, v, joint.weight.T @ q))
    theirs = once(lambda u, v, q, joint: joint(torch.tanh(u[:, :, None] * v[None, None])) @ q)
    return {"B": B, "C": C, "L": L, "operator": ours, "research": theirs}


def ceilings() -> dict[str, float | str | None]:
    return {"tanh_per_s": tanh_per_s(), "bytes_per_s": bytes_per_s(), "clock_mhz": clock_mhz()}


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=480, show_default=True)
@click.option("--quick", is_flag=True, help="L=49 in float16 only, without torch.compile.")
def main(out: Path | None, seconds: float, quick: bool) -> None:
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a GPU; tests/kernels show what can be shown without one.")
    about = {**environment(), "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    results = Results(out, seconds, **about)
    found = ceilings()  # each time: a later run may have another clock
    results.add("ceilings", found)
    kernels = {dtype: Kernels(dtype) for dtype in ("float16", "float32")}
    here = context(torch.cuda.current_device())
    polynomial = Kernels("float16", cubin(supported(here.capability), "float16", polynomial=POLYNOMIAL))
    ceiling = float(found["tanh_per_s"])
    grid = [each for each in GRID if not quick or each[2:] == (49, "float16")]
    for C, B, L, dtype in grid:
        other = polynomial if dtype == "float16" else None
        name = f"C={C} B={B} L={L} {dtype}"
        results.attempt(
            name,
            lambda shape=(C, B, L, dtype), other=other: one_shape(*shape, kernels[shape[3]], ceiling, other),
            needs_s=120 if B * C * L > 5e7 else 0,
        )
        torch.cuda.empty_cache()
    results.attempt("training", training)
    for C, B in () if quick else COMPILED:  # last, since each takes minutes
        results.attempt(f"compiled C={C} B={B} L=49 float16", lambda C=C, B=B: {"compiled_us": compiled_us(C, B)}, 240)
    results.finish()


if __name__ == "__main__":
    main()
