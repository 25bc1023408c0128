"""What a run remembers of its epochs, for `log.csv`, the report and the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sdpl.evaluate.training import AP
from sdpl.train.log import EpochLog


class History:
    """The rows of `log.csv`, AP of each category [epochs,C], and the attention after some epochs (`snapshots`)."""

    def __init__(self, categories: Sequence[str]):
        self.categories = categories
        self.epochs: list[dict[str, Any]] = []
        self.ap = torch.empty(0, len(categories))  # in percent, -1 where a category has none
        self.snapshots: list[dict[str, Any]] = []

    def add(self, log: EpochLog, ap: Mapping[str, float | None]) -> None:
        """The newest epoch. ap: of each category in percent, None without a positive."""
        self.epochs.append(asdict(log))
        values = [ap.get(name) for name in self.categories]
        row = torch.tensor([[-1.0 if value is None else value for value in values]])  # [1,C]
        self.ap = torch.cat([self.ap, row])

    @property
    def losses(self) -> list[float]:
        """The mean loss of each epoch."""
        return [row["train_loss"] for row in self.epochs]

    def ap_by_epoch(self) -> list[AP]:
        """AP by category of each epoch; nothing of those from before it was kept."""
        rows = self.ap.tolist()
        known = [{n: None if v < 0 else v for n, v in zip(self.categories, row, strict=True)} for row in rows]
        return [*({} for _ in range(len(self.epochs) - len(rows))), *known]

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {"history": self.epochs, "ap_history": self.ap, "snapshots": self.snapshots}

    def load_state(self, state: dict[str, Any]) -> None:
        """Of `state()`, also that of an older sdpl, which had only `history`."""
        self.epochs, self.snapshots = state["history"], state.get("snapshots", [])
        ap = state.get("ap_history")
        if ap is not None and ap.shape[1] == len(self.categories):
            self.ap = ap
