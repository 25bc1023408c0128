"""Losses for partial labels: 1 present, -1 absent, 0 unknown. Computed in float32 whatever the input."""

import torch
from torch.nn import functional as F


def partial_asymmetric_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 2.0,
    margin: float = 0.05,
    probability: str = "sigmoid",
) -> torch.Tensor:
    """The paper's loss (eq. 10-11), summed over the known categories, mean over the batch.

        present:  -(1 - p)^gamma_pos log(p)
        absent:   -m^gamma_neg log(1 - m),  m = max(p - margin, 0)
        unknown:  nothing, and no gradient

    logits [B,C], labels [B,C]; returns a scalar, 0 for an empty batch. Each gamma is 0 or at least 1
    (in between, the gradient at p = 0 or 1 is infinite). `probability="softmax"` takes p over the categories.
    """
    _check(logits, labels)
    for name, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        if 0 < gamma < 1 or gamma < 0:
            raise ValueError(f"{name}: expected 0 or a number >= 1, got {gamma}")
    logits = logits.float()
    p, log_p, log_not_p = _probabilities(logits, probability)  # each [B,C]
    shifted = (p - margin).clamp(min=0)  # [B,C]
    log_not_shifted = torch.log((1 - p + margin).clamp(max=1)) if margin > 0 else log_not_p  # [B,C]
    present = (1 - p) ** gamma_pos * log_p  # [B,C]
    absent = shifted**gamma_neg * log_not_shifted  # [B,C]
    return _reduce(present, absent, labels)


def partial_bce_loss(logits: torch.Tensor, labels: torch.Tensor, probability: str = "sigmoid") -> torch.Tensor:
    """Binary cross entropy over the known labels, the paper's comparison; reduced as `partial_asymmetric_loss`."""
    return partial_asymmetric_loss(logits, labels, 0.0, 0.0, 0.0, probability)


def _probabilities(logits: torch.Tensor, probability: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """p, log(p) and log(1 - p), each [B,C], without cancellation."""
    if probability == "sigmoid":
        return logits.sigmoid(), F.logsigmoid(logits), F.logsigmoid(-logits)
    log_p = logits.log_softmax(dim=-1)  # [B,C]
    p = log_p.exp()
    tiny = torch.finfo(p.dtype).eps
    return p, log_p, torch.log1p(-p.clamp(max=1 - tiny))


def _reduce(present: torch.Tensor, absent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros((), device=present.device)
    terms = torch.where(labels > 0, present, torch.where(labels < 0, absent, zero))  # [B,C]
    return -terms.sum() / max(len(terms), 1)


def _check(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if logits.shape != labels.shape or logits.ndim != 2:
        raise ValueError(f"expected logits and labels [B,C], got {list(logits.shape)} and {list(labels.shape)}")
