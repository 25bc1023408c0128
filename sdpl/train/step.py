"""One optimiser step: losses of the parts of a batch, gradients over all processes, the moving average."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdpl.errors import UserError
from sdpl.train.config import Config
from sdpl.train.distributed import Processes
from sdpl.train.losses import partial_asymmetric_loss, partial_bce_loss
from sdpl.train.model import PartialLabelModel
from sdpl.train.resume import check_learner

Part = tuple[list[int], torch.Tensor]  # rows of the data, and their maps f [b,L,D]

MOST_CATEGORIES = 80  # COCO's, for which the paper chose its learning rate


class NotFiniteError(Exception):
    """The loss is NaN or infinite; the message says what became so first, `rows` which images were in the batch."""

    def __init__(self, value: float, cause: str, rows: Sequence[int]):
        super().__init__(cause)
        self.value, self.rows = value, rows


class Learner:
    """The trainable parameters of a model, their optimiser, and with `ema_decay` their moving average."""

    def __init__(self, model: PartialLabelModel, config: Config, group: Processes):
        self.model, self.config, self.group = model, config.train, group
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=self.config.lr, momentum=self.config.momentum, weight_decay=self.config.weight_decay
        )
        self.steps = 0
        self.average = [p.detach().clone() for p in self.parameters] if self.config.ema_decay else []
        self.prompt_features: torch.Tensor | None = (
            None  # [C,E] of prompts that learn nothing: the text tower runs once
        )

    def text_features(self) -> torch.Tensor:
        """t [C,E], as `PartialLabelModel.text_features`."""
        if self.model.prompts.is_frozen and self.prompt_features is None:  # not before a checkpoint's weights are there
            with torch.no_grad():
                self.prompt_features = self.model.prompts(self.model.encoder)  # [C,E]
        return self.model.text_features(self.prompt_features)

    def step(self, parts: Iterable[Part], labels: torch.Tensor, size: int, lr: float) -> float:
        """Learn from one batch; returns its mean loss.

        parts: this process's share. labels: int8 [N,C] of all rows. size: images in the whole
        batch. The gradient is that of the whole batch, however it is cut up. The text tower runs once per step.
        Raises NotFiniteError, before anything is changed, when the loss is NaN or infinite.
        """
        self.optimiser.zero_grad(set_to_none=True)
        text = self.text_features()  # [C,E]
        t = text.detach().requires_grad_(text.requires_grad)  # [C,E]; collects the gradients of all parts
        total = torch.zeros((), device=t.device)
        for rows, f in parts:
            if not rows:  # none of its images could be read
                continue
            logits = self.model.pool(f, t)[0]  # [b,C]
            loss = self._loss(logits, labels[rows].to(f.device)) * (len(rows) / size)
            if not torch.isfinite(loss):
                raise NotFiniteError(loss.item(), self._cause(f, t), rows)
            loss.backward()
            total += loss.detach()
        if t.grad is not None:
            text.backward(t.grad)
        self._share(total)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = lr
        self.optimiser.step()
        self.steps += 1
        self._update_average()
        return total.item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged parameters, if there is an average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restart_average(self) -> None:
        """Begin the average with the parameters as they are now."""
        for parameter, average in zip(self.parameters, self.average, strict=False):
            average.copy_(parameter.detach())

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the model's own (averaged) state."""
        trained = [p.detach() for p in self.parameters] if self.average else []
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps, "trained": trained}

    def load_state(self, state: dict[str, Any]) -> None:
        """Of `state()`, after the model's own state was loaded. Raises UserError for the state of another learner."""
        check_learner(state, self.state(), self.parameters)
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]
        for parameter, average, trained in zip(self.parameters, self.average, state["trained"], strict=False):
            average.copy_(parameter.detach())
            parameter.data.copy_(trained)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The configured loss. It sums over the categories, and so do the gradients of what they share: beyond the
        paper's 80 the sum is scaled down to as much as 80 would give, so that the learning rate keeps its meaning."""
        config, probability = self.config, self.model.config.probability
        if config.loss == "partial-bce":
            loss = partial_bce_loss(logits, labels, probability)
        else:
            gammas = config.gamma_pos, config.gamma_neg
            loss = partial_asymmetric_loss(logits, labels, *gammas, config.margin, probability)
        return loss * min(1.0, MOST_CATEGORIES / logits.shape[1])

    def _share(self, total: torch.Tensor) -> None:
        """Sum gradients and loss over the processes. A parameter that got no gradient anywhere keeps none (then
        it is not decayed either); a process may have had no part of a small last batch."""
        if self.group.world_size == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in self.parameters], device=total.device)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.group.all_reduce([*(p.grad for p in self.parameters if p.grad is not None), used, total])
        for parameter, count in zip(self.parameters, used.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def _update_average(self) -> None:
        if self.average:  # the first steps count more, so that the random start is soon forgotten
            decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
            get_ema_multi_avg_fn(decay)(self.average, self.parameters, self.steps)

    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.data, average.data = average.data, parameter.data

    def _cause(self, f: torch.Tensor, t: torch.Tensor) -> str:
        """What is not finite, first things first, and the fix."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        if bad:
            return f"{bad[0]} is no longer finite, the steps were too large: lower train.lr"
        if not torch.isfinite(f).all():
            return f"the image tower's map overflows in {self.config.precision}: take train.precision 'bf16' or 'fp32'"
        if not torch.isfinite(t).all():
            return "the text features are not finite: lower train.lr, or check model.weights"
        return "the logits overflow: lower train.lr or model.inverse_temperature"


def explain(error: NotFiniteError, epoch: int, step: int, names: str) -> UserError:
    """One line about a loss that is NaN or infinite. epoch and step count from 1; names: of the batch's images."""
    return UserError(f"the loss is {error.value} in epoch {epoch}, step {step} (images {names}): {error}.")
