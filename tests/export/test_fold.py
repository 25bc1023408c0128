"""Each identity of the fold, in float64, against the equations as the paper writes them."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from sdpl.export.fold import fold
from sdpl.kernels import EPS
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.model.decoupling import Decoupling

EXACT = dict(rtol=1e-10, atol=1e-12)


@pytest.fixture
def model(checkpoint):
    """The trained model with every parameter of the head random, so that no term is zero by chance; float64."""
    model = restore_model(load_checkpoint(checkpoint))[1].double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.decoupling.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return model


def use_head(model, kind, pooling):
    old = model.decoupling
    torch.manual_seed(0)
    sizes = (old.image_projection.in_features, 10, model.words.shape[1], 24, old.to_embedding.out_features)
    model.decoupling = Decoupling(*sizes, kind, pooling).double()


def paper_attention(head, f, words):
    """a [B,C,L] by equations 3-5: P for every (image, location, category); or by figure 4's convolution; or none."""
    if head.kind == "semantic":
        u, v = head.image_projection(f), head.word_projection(words)  # [B,L,K], [C,K]
        joint = head.joint(torch.tanh(u[:, None] * v[None, :, None]))  # [B,C,L,K]
        return head.attention(joint)[..., 0].softmax(dim=-1)
    if head.kind == "none":
        return torch.full((len(f), len(words), f.shape[1]), 1 / f.shape[1], dtype=f.dtype)
    maps = F.conv1d(f.transpose(1, 2), head.convolution.weight[:, :, None], head.convolution.bias)  # [B,C,L]
    return (head.scale[:, None] * torch.tanh(maps)).softmax(dim=-1)


def research_formulation(model, f):
    """Equations 3-6 and 9 as the paper writes them, pooling first."""
    head = model.decoupling
    a = paper_attention(head, f, model.words)  # [B,C,L]
    y = head.image_projection(f) if head.pooling == "projected" else f
    e = head.to_embedding(torch.einsum("bcl,bld->bcd", a, y))  # [B,C,E]
    return F.cosine_similarity(e, model.text_features()[None], dim=-1, eps=EPS) * model.inverse_temperature


def folded_logits(head, f):
    ug = f @ head.weight + head.bias  # [B,L,K+E]
    u, g = ug[..., : head.joint_dim], ug[..., head.joint_dim :]
    return bilinear_attention_pool(u, head.v, head.q, g, head.t)[0]


@pytest.fixture
def f(model):
    size = (2, 9, model.decoupling.image_projection.in_features)
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["semantic", "convolutional", "none"])
@pytest.mark.parametrize("pooling", ["projected", "trunk"])
def test_the_whole_fold(model, f, kind, pooling):
    use_head(model, kind, pooling)
    with torch.no_grad():
        expected = research_formulation(model, f)
        torch.testing.assert_close(folded_logits(fold(model, torch.float64), f), expected, **EXACT)
        torch.testing.assert_close(model.decoupling(f, model.words, model.text_features())[0], expected, **EXACT)


def test_one_vector_replaces_p_and_f_att(model, f):
    head = model.decoupling
    x = torch.tanh(f @ torch.randn(f.shape[-1], 24, dtype=torch.float64))
    scores = head.attention(head.joint(x))[..., 0]  # [B,L]
    q = fold(model, torch.float64).q
    torch.testing.assert_close((x @ q).softmax(-1), scores.softmax(-1), **EXACT)
    constant = scores - x @ q
    torch.testing.assert_close(constant, constant[:1, :1].expand_as(constant), **EXACT)


def test_an_affine_map_moves_before_the_pooling(model, f):
    head = model.decoupling
    a = torch.rand(2, 3, 9, dtype=torch.float64).softmax(-1)
    u = head.image_projection(f)
    torch.testing.assert_close(a @ head.to_embedding(u), head.to_embedding(a @ u), **EXACT)


def test_u_and_g_come_from_one_product(model, f):
    head, folded = model.decoupling, fold(model, torch.float64)
    u = head.image_projection(f)
    both = torch.cat([u, head.to_embedding(u)], dim=-1)
    torch.testing.assert_close(f @ folded.weight + folded.bias, both, **EXACT)


def test_text_features_hold_the_temperature(model):
    folded = fold(model, torch.float64)
    norms = folded.t.norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, model.inverse_temperature.item()), **EXACT)


def test_the_softmax_denominator_cancels_in_the_cosine(f):
    s, t = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(3, f.shape[-1], dtype=torch.float64)
    normalised, raw = s.softmax(-1) @ f, s.exp() @ f
    torch.testing.assert_close(
        F.cosine_similarity(normalised, t[None], dim=-1), F.cosine_similarity(raw, t[None], dim=-1), **EXACT
    )


@pytest.mark.parametrize("name", ["weight", "bias", "v", "q", "t"])
def test_a_wrong_fold_is_noticed(model, f, name):
    """The negative control: one wrong entry in any folded tensor changes the logits by more than the tolerance."""
    head = fold(model, torch.float64)
    wrong = getattr(head, name).clone()
    wrong.view(-1)[-1] += 0.1
    with torch.no_grad():
        difference = folded_logits(dataclasses.replace(head, **{name: wrong}), f) - research_formulation(model, f)
    assert difference.abs().max() > 1e-6
