"""The model: frozen CLIP, semantic decoupling, learned prompts, scores."""

from sdpl.train.model.partial_label_model import PartialLabelModel, new_model

__all__ = ["PartialLabelModel", "new_model"]
