"""The PyTorch operator: the specification's values and gradients, PyTorch's own checks, and its memory."""

import pytest
import torch

from sdpl.kernels import torch_op
from sdpl.kernels.reference import attention_logits as reference
from sdpl.kernels.torch_op import _scores, _scores_backward, attention_logits


def operands(batch=3, locations=5, categories=4, joint=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, locations, joint), (categories, joint), (joint,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (1, 1, 1, 1), (0, 5, 4, 6), (2, 49, 20, 300)])
def test_values_and_gradients_of_the_specification(shape, monkeypatch):
    monkeypatch.setattr(torch_op, "BLOCK_BYTES", 4096)  # several blocks, the last one smaller
    inputs = operands(*shape)
    s, expected = attention_logits(*inputs), reference(*inputs)
    torch.testing.assert_close(s, expected)
    ds = torch.randn(s.shape, dtype=s.dtype)
    for ours, theirs in zip(torch.autograd.grad(s, inputs, ds), torch.autograd.grad(expected, inputs, ds), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    assert torch.autograd.gradcheck(attention_logits, operands())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own making
def test_opcheck():
    inputs = operands(dtype=torch.float32)
    torch.library.opcheck(_scores, inputs)
    detached = [x.detach() for x in inputs]
    torch.library.opcheck(_scores_backward, (torch.randn(3, 4, 5), *detached))


def test_under_compile():
    inputs = operands(dtype=torch.float32)
    compiled = torch.compile(lambda *x: attention_logits(*x).square().sum(), backend="aot_eager", fullgraph=True)
    gradients = torch.autograd.grad(compiled(*inputs), inputs)
    expected = torch.autograd.grad(reference(*inputs).square().sum(), inputs)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    u, v, q = operands(2, 9, 3, 512, dtype=torch.float32)
    half = [x.detach().to(dtype).requires_grad_() for x in (u, v)]
    s = attention_logits(*half, q)
    assert s.dtype == torch.float32
    expected = reference(half[0].float(), half[1].float(), q)
    torch.testing.assert_close(s, expected, rtol=1e-5, atol=1e-4)
    s.sum().backward()
    assert half[0].grad.dtype == dtype
    assert q.grad.dtype == torch.float32


def test_under_autocast():
    linear = torch.nn.Linear(8, 16, bias=False)
    _, v, q = operands(joint=16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        s = attention_logits(linear(torch.randn(2, 5, 8)), v, q)
    assert s.dtype == torch.float32
    s.sum().backward()
    assert torch.isfinite(linear.weight.grad).all()


def test_two_runs_give_the_same_bits():
    inputs = operands(4, 49, 10, 64, dtype=torch.float32)
    first, second = (torch.autograd.grad(attention_logits(*inputs).sum(), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_saves_its_inputs_and_nothing_of_size_bclk():
    inputs = operands(2, 49, 30, 256, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attention_logits(*inputs)
    assert sum(x.numel() for x in saved) == sum(x.numel() for x in inputs)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((2, 5, 6), (4, 7), (6,)),
            r"expected u \[B,L,K\], v \[C,K\], q \[K\] with one K, got \[2, 5, 6\], \[4, 7\], \[6\]",
        ),
        (((5, 6), (4, 6), (6,)), r"expected u \[B,L,K\]"),
        (((2, 5, 6), (4, 6), (1, 6)), r"expected u \[B,L,K\]"),
    ],
)
def test_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        attention_logits(*(torch.zeros(s) for s in shapes))


def test_devices_are_named():
    u, v, q = operands()
    with pytest.raises(ValueError, match="on one device, got cpu, meta, cpu"):
        attention_logits(u, v.to("meta"), q)


def test_arrays_that_are_not_contiguous_are_handled():
    u, v, q = (x.detach() for x in operands())
    expected = reference(u, v, q)
    torch.testing.assert_close(attention_logits(u.transpose(0, 1).contiguous().transpose(0, 1), v, q), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 49, 80, 1024), (1, 50, 7, 300), (2, 196, 81, 8), (0, 49, 4, 64)])
def test_gpu_values_and_gradients(shape, dtype):
    from sdpl.kernels.tolerance import backward_deviations, departure, forward_deviations

    u, v, q = (x.detach().cuda() for x in operands(*shape, dtype=dtype))
    q = q.float() / shape[3] ** 0.5
    inputs = [x.requires_grad_() for x in (u, v, q)]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    s, expected = attention_logits(*inputs), reference(*exact)
    plain = [x.detach() for x in exact]
    g, t = torch.zeros(*plain[0].shape[:2], 1), torch.zeros(len(plain[1]), 1)
    deviation = forward_deviations(*plain, g.double(), t.double()).scores if shape[0] else s.double().cpu()
    assert departure(s.detach().double().cpu(), expected.detach(), deviation) is None
    ds = torch.ones_like(s)
    ours = torch.autograd.grad(s, inputs, ds)
    theirs = torch.autograd.grad(expected, exact, ds.double().cpu())
    rounding = torch.finfo(dtype).eps  # gradients of u and v come in the inputs' dtype
    for a, b, deviation in zip(ours, theirs, backward_deviations(*plain, ds.double().cpu()), strict=True):
        assert departure(a.double().cpu(), b, deviation + rounding * b.abs()) is None
