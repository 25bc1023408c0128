"""Scores of the validation split by the model as it is: each process scores its share, then all have all."""

from collections.abc import Iterator

import numpy as np
import torch

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.progress import Report, Steps
from sdpl.train.distributed import Processes
from sdpl.train.features.sources import FeatureMaps
from sdpl.train.model import PartialLabelModel


class Validation:
    """Scores a split with a model. batch_size: images that run at once, over all processes."""

    def __init__(self, data: LabelledImages, features: FeatureMaps, group: Processes, batch_size: int, report: Report):
        self.data, self.features, self.group, self.report = data, features, group, report
        self.size = max(1, batch_size // group.world_size)  # of this process's batches

    @torch.no_grad()
    def score(self, model: PartialLabelModel, t: torch.Tensor, title: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n,C] of the images that could be read, and their rows [n] in the split. t: text features [C,E];
        title: of the progress. Raises UserError when none could be read."""
        scores = torch.zeros(self.data.labels.shape, device=t.device)  # [N,C]
        times = torch.zeros(len(scores), device=t.device)  # [N], that each image was scored: 1, or 0 if unreadable
        steps = Steps(self.report, title, len(self.data))
        for rows, f in self.features.batches(self._groups()):
            if rows:
                scores[rows] = model.probabilities(model.pool(f, t)[0])
                times[rows] += 1
            steps.advance(min(len(rows) * self.group.world_size, steps.total - steps.done))
        self.group.all_reduce([scores, times])
        found = np.flatnonzero(times.cpu().numpy() == 1)  # [n]
        if not len(found):
            raise UserError(f"none of {len(scores)} validation images could be read; `sdpl-data check` says why.")
        return scores.cpu().numpy()[found], found

    def _groups(self) -> Iterator[np.ndarray]:
        """Rows of this process's share, a batch each."""
        own = np.arange(self.group.rank, len(self.data), self.group.world_size)
        return (own[start : start + self.size] for start in range(0, len(own), self.size))
