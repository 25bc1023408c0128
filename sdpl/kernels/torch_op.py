"""The attention scores as a PyTorch operator whose backward recomputes tanh: memory B*L*C instead of B*L*C*K.

    s[b,c,l] = sum_k q[k] tanh(u[b,l,k] v[c,k])

On a GPU it launches the CUDA kernels. On a CPU it walks blocks of rows that stay in a core's cache.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sdpl.kernels.arrays import DeviceArray
    from sdpl.kernels.launch import Kernels

    Views = tuple[DeviceArray, DeviceArray, DeviceArray]  # of u, v and q

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of u, v and q
BLOCK_BYTES = 1 << 18  # of one temporary on the CPU: a quarter of a MB, so that a few of them share a core's cache


def attention_logits(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """s [B,C,L] from u [B,L,K], v [C,K], q [K]; float32 (float64 from float64), whatever autocast made of the inputs.

    Raises ValueError saying what was expected for shapes and devices that do not fit.
    """
    if u.ndim != 3 or v.ndim != 2 or q.ndim != 1 or not u.shape[2] == v.shape[1] == q.shape[0]:
        shapes = f"{list(u.shape)}, {list(v.shape)}, {list(q.shape)}"
        raise ValueError(f"expected u [B,L,K], v [C,K], q [K] with one K, got {shapes}")
    if not u.device == v.device == q.device:
        raise ValueError(f"expected u, v and q on one device, got {u.device}, {v.device}, {q.device}")
    accumulate = torch.float64 if u.dtype == torch.float64 else torch.float32
    s: torch.Tensor = _scores(u.contiguous(), v.to(u.dtype).contiguous(), q.to(accumulate).contiguous())  # [B,C,L]
    return s


@torch.library.custom_op("sdpl::attention_logits", mutates_args=(), device_types="cpu")
def _scores(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    batch, locations, joint = u.shape
    rows, v = u.to(q.dtype).reshape(-1, joint), v.to(q.dtype)  # [B*L,K], [C,K]
    s = torch.empty(len(v), len(rows), dtype=q.dtype)  # [C,B*L]
    for part, block in _blocks(rows):
        y = torch.empty_like(block)  # [R,K]
        for c in range(len(v)):
            torch.mul(block, v[c], out=y).tanh_()
            torch.mv(y, q, out=s[c, part])
    return s.reshape(len(v), batch, locations).transpose(0, 1).contiguous()  # [B,C,L]


@torch.library.custom_op("sdpl::attention_logits_backward", mutates_args=(), device_types="cpu")
def _scores_backward(
    ds: torch.Tensor, u: torch.Tensor, v: torch.Tensor, q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    joint, categories = u.shape[2], len(v)
    rows, values = u.to(q.dtype).reshape(-1, joint), v.to(q.dtype)
    ds = ds.transpose(0, 1).reshape(categories, -1, 1)  # [C,B*L,1]
    du, dv, dq = torch.zeros_like(rows), torch.zeros_like(values), torch.zeros_like(q)
    for part, block in _blocks(rows):
        y, temporary = torch.empty_like(block), torch.empty_like(block)  # [R,K]
        for c in range(categories):
            d = ds[c, part]  # [R,1]
            torch.mul(block, values[c], out=y).tanh_()
            dq.addmv_(y.T, d[:, 0])
            torch.mul(y, y, out=temporary).neg_().add_(1).mul_(d)  # ds (1 - tanh^2)
            du[part].addcmul_(temporary, values[c])
            dv[c] += temporary.mul_(block).sum(dim=0)
    du *= q
    dv *= q
    return du.reshape(u.shape).to(u.dtype), dv.to(v.dtype), dq


def _blocks(rows: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of the rows [N,K], few enough to stay in cache, with the rows themselves."""
    step = max(1, BLOCK_BYTES // (rows.element_size() * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step), rows[start : start + step]


@_scores.register_fake
def _(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return q.new_empty(u.shape[0], v.shape[0], u.shape[1])


@_scores_backward.register_fake
def _(ds: torch.Tensor, u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> Gradients:
    return torch.empty_like(u), torch.empty_like(v), torch.empty_like(q)


def _save_inputs(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, ds: torch.Tensor) -> Gradients:
    gradients: Gradients = _scores_backward(ds.contiguous(), *ctx.saved_tensors)
    return gradients


_scores.register_autograd(_backward, setup_context=_save_inputs)


@_scores.register_kernel("cuda")
def _(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    kernels, views = _on_gpu(u, v, q)
    s = q.new_empty(u.shape[0], v.shape[0], u.shape[1])  # float32, whatever PyTorch's default is
    kernels.scores(*views, device_array(s), torch.cuda.current_stream(u.device).cuda_stream)
    return s


@_scores_backward.register_kernel("cuda")
def _(ds: torch.Tensor, u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> Gradients:
    from sdpl.kernels.arrays import is_aligned
    from sdpl.kernels.plan import Shape, plan_backward_vq

    kernels, views = _on_gpu(u, v, q)
    stream = torch.cuda.current_stream(u.device).cuda_stream
    shape = Shape(*u.shape[:2], *v.shape)
    plan, slices = plan_backward_vq(shape, kernels.dtype, is_aligned(shape, *views), kernels.multiprocessors)
    du = q.new_empty(u.shape)
    dv = q.new_empty(slices, shape.C, shape.K)
    dq = q.new_empty(slices, plan.grid[1], shape.K)
    if shape.B == 0:
        return du.to(u.dtype), torch.zeros_like(v), torch.zeros_like(q)
    kernels.backward_u(*views, device_array(ds), device_array(du), stream)
    kernels.backward_vq(*views, device_array(ds), device_array(dv), device_array(dq), stream)
    return du.to(u.dtype), dv.sum(0).to(v.dtype), dq.sum((0, 1))


def _on_gpu(u: torch.Tensor, v: torch.Tensor, q: torch.Tensor) -> "tuple[Kernels, Views]":
    if u.dtype == torch.float64:
        raise ValueError("u: expected float32, float16 or bfloat16 on a GPU, got float64")
    kernels = _kernels(str(u.dtype).removeprefix("torch."), u.device.index)
    return kernels, (device_array(u), device_array(v), device_array(q))


@functools.cache
def _kernels(dtype: str, device_id: int) -> "Kernels":
    from sdpl.kernels.launch import Kernels

    return Kernels(dtype, device_id=device_id)


def device_array(x: torch.Tensor) -> "DeviceArray":
    """A contiguous tensor on a GPU as the launcher takes it; of any dtype, which `__cuda_array_interface__` is not."""
    from sdpl.kernels.arrays import DeviceArray

    return DeviceArray(x.data_ptr(), tuple(x.shape), str(x.dtype).removeprefix("torch."))
