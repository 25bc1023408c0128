"""How attention starts: equally sharp at any sizes, and with gradients for all of its layers."""

import pytest
import torch

from sdpl.kernels.reference import attention_logits, softmax
from sdpl.train.losses import partial_asymmetric_loss
from sdpl.train.model.decoupling import Decoupling

SPREAD = 0.4
SIZES = {  # (L, D, K, W, E), and the scale and kind of the map's values
    "RN101 at 448": ((49, 2048, 1024, 300, 512), 0.4, "relu"),
    "RN50x16 at 384": ((36, 3072, 512, 768, 768), 3.0, "relu"),
    "ViT-B-16 at 224": ((196, 768, 256, 512, 512), 1.0, "norm"),
    "the demo's": ((36, 512, 128, 128, 128), 0.05, "relu"),
}
BATCH, CATEGORIES = 4, 8


def drawn(name, kind="semantic", pooling="projected"):
    """A fresh head at a backbone's sizes, maps f [B,L,D] as such a trunk makes them, and word vectors [C,W]."""
    (length, channels, joint, words, embed), scale, values = SIZES[name]
    torch.manual_seed(3)
    head = Decoupling(channels, CATEGORIES, words, joint, embed, kind, pooling)
    f = scale * torch.randn(BATCH, length, channels)
    return head, f.relu() ** 1.5 if values == "relu" else f, torch.randn(CATEGORIES, words)


def peak(head, f, words):
    """The largest attention of a category, in multiples of uniform attention; mean over images and categories."""
    u, v, q, _ = head.operands(f, words)
    return float(softmax(attention_logits(u, v, q)).amax(-1).mean() * f.shape[1])


def gradients(head, f, words):
    """Norms of the gradients of U, V, P and F_att, of one step's loss."""
    t = 10 * torch.nn.functional.normalize(torch.randn(CATEGORIES, head.to_embedding.out_features), dim=-1)
    labels = torch.randint(-1, 2, (BATCH, CATEGORIES))
    head.zero_grad()
    partial_asymmetric_loss(head(f, words, t)[0], labels).backward()
    layers = (head.image_projection, head.word_projection, head.joint, head.attention)
    return torch.stack([layer.weight.grad.norm() for layer in layers])


@pytest.mark.parametrize("name", SIZES)
def test_attention_starts_equally_sharp_and_learns_at_any_sizes(name):
    head, f, words = drawn(name)
    head.scale_attention(SPREAD / head.spread(f, words))
    assert head.spread(f, words) == pytest.approx(SPREAD, rel=1e-4)
    with torch.no_grad():
        assert 2 < peak(head, f, words) < 3.5
    first, *rest = gradients(head, f, words)
    v, p, f_att = (float(norm / first) for norm in rest)
    assert v > 0.03
    assert min(p, f_att) > 0.002
    assert p == pytest.approx(f_att, rel=0.2)  # each took the root of the factor


def test_as_drawn_it_starts_flat_and_learns_nothing_at_some_sizes():
    """What the scaling is for: the same bounds fail without it."""
    head, f, words = drawn("the demo's")
    with torch.no_grad():
        assert peak(head, f, words) < 1.05
    first, *rest = gradients(head, f, words)
    assert max(rest) / first < 0.001


@pytest.mark.parametrize("name", SIZES)
def test_convolutional_attention_starts_as_sharp(name):
    head, f, words = drawn(name, "convolutional")
    head.scale_attention(SPREAD / head.spread(f, words))
    assert head.spread(f, words) == pytest.approx(SPREAD, rel=1e-4)
    with torch.no_grad():
        assert 1.5 < peak(head, f, words) < 3.5


def test_the_spread_of_thousands_of_categories_is_measured_on_some():
    head, f, words = drawn("the demo's")
    many = words.repeat(100, 1)
    assert head.spread(f, many) == pytest.approx(head.spread(f, words), rel=0.2)
    for kind in ("none", "sigmoid-mask"):
        other, f, words = drawn("the demo's", kind)
        assert other.spread(f, words) == 0
        before = other.state_dict()
        other.scale_attention(5.0)
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def fused_by_the_formula(head, f, words, t):
    """eq. 6 with the joint features themselves: everything at once, as written."""
    y = torch.tanh((f @ head.image_projection.weight.T)[:, None] * head.word_projection(words)[None, :, None])
    s = head.attention(head.joint(y))[..., 0]  # [B,C,L]
    a = s.softmax(dim=-1)
    e = head.to_embedding((a[..., None] * y).sum(dim=2))  # [B,C,E]
    return (torch.nn.functional.normalize(e, dim=-1) * t).sum(dim=-1), a


def test_fused_pooling_is_the_formula_with_its_gradients():
    head, f, words = drawn("the demo's", pooling="fused")
    head.scale_attention(SPREAD / head.spread(f, words))
    t = torch.randn(CATEGORIES, head.to_embedding.out_features)
    grads = []
    for forward in (head, lambda f, words, t: fused_by_the_formula(head, f, words, t)):
        head.zero_grad()
        logits, attention = forward(f, words, t)
        logits.square().sum().backward()
        found = {name: p.grad for name, p in head.named_parameters() if not name.endswith(("joint.bias", "ion.bias"))}
        grads.append((logits.detach(), attention.detach(), found))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head(f, words, t)[0], grads[0][0])


def test_sigmoid_masks_weigh_without_a_softmax():
    head, f, words = drawn("the demo's", "sigmoid-mask")
    t = torch.randn(CATEGORIES, head.to_embedding.out_features)
    logits, a = head(f, words, t)
    torch.testing.assert_close(a, head.convolution(f).sigmoid().transpose(1, 2))
    e = a @ head.to_embedding(head.image_projection(f))
    torch.testing.assert_close(logits, (torch.nn.functional.normalize(e, dim=-1) * t).sum(dim=-1))
    logits.sum().backward()
    assert head.convolution.weight.grad.norm() > 0
