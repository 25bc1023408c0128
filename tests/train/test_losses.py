import math

import pytest
import torch

from sdpl.train.losses import partial_asymmetric_loss, partial_bce_loss


def by_hand(logits, labels, gamma_pos, gamma_neg, margin):
    """Equations 10-11, one number at a time."""
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if y == 1:
            total -= (1 - p) ** gamma_pos * math.log(p)
        elif y == -1:
            shifted = max(p - margin, 0)
            total -= shifted**gamma_neg * math.log(1 - shifted)
    return total / len(logits)


LABELS = torch.tensor([[1, -1, 0, 1], [-1, 0, -1, 1]])


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "margin"), [(1, 2, 0.05), (0, 0, 0), (2, 4, 0.2), (1, 1, 0)])
def test_equals_the_equations_written_out(gamma_pos, gamma_neg, margin):
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * 3
    expected = by_hand(logits, LABELS, gamma_pos, gamma_neg, margin)
    assert partial_asymmetric_loss(logits, LABELS, gamma_pos, gamma_neg, margin).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_unknown_labels_contribute_exactly_nothing():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = partial_asymmetric_loss(logits, LABELS)
    loss.backward()
    assert (logits.grad[LABELS == 0] == 0).all()
    assert (logits.grad[LABELS != 0] != 0).any()
    changed = torch.where(LABELS == 0, 1e6, logits.detach())
    assert partial_asymmetric_loss(changed, LABELS).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("probability", ["sigmoid", "softmax"])
@pytest.mark.parametrize("value", [0.0, 80.0, -80.0, 1e4, -1e4])
def test_extreme_logits_stay_finite(value, probability):
    logits = torch.full((1, 4), value)
    logits[0, 0] = -value
    logits.requires_grad_()
    for loss in (
        partial_asymmetric_loss(logits, LABELS[:1], probability=probability),
        partial_bce_loss(logits, LABELS[:1], probability),
    ):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_is_computed_in_float32():
    logits = torch.tensor([[12.0, -12.0]], dtype=torch.float16, requires_grad=True)
    loss = partial_bce_loss(logits, torch.tensor([[-1, 1]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(24.0, rel=1e-4)


def test_partial_bce_is_binary_cross_entropy_of_the_known():
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    known = LABELS != 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[known], (LABELS[known] > 0).float(), reduction="sum"
    )
    assert partial_bce_loss(logits, LABELS).item() == pytest.approx(expected.item() / 2, rel=1e-5)


def test_softmax_option_takes_the_probability_over_categories():
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    p = logits.softmax(-1)[0]
    expected = -(p[0].log() + (1 - p[1]).log() + p[3].log())
    assert partial_bce_loss(logits, LABELS[:1], "softmax").item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_unknown_and_empty_batches_are_zero():
    assert partial_asymmetric_loss(torch.randn(3, 4), torch.zeros(3, 4)).item() == 0
    assert partial_asymmetric_loss(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0


@pytest.mark.parametrize("gamma", [-1.0, 0.5])
def test_a_focusing_power_with_infinite_gradient_is_refused(gamma):
    with pytest.raises(ValueError, match="expected 0 or a number >= 1"):
        partial_asymmetric_loss(torch.zeros(1, 4), LABELS[:1], gamma_pos=gamma)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected logits and labels \[B,C\], got \[2, 4\] and \[2, 3\]"):
        partial_asymmetric_loss(torch.zeros(2, 4), torch.zeros(2, 3))
