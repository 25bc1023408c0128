"""Masking under the name by which users of training know it; `sdpl.data.masks` is the definition."""

from sdpl.data.masks import mask_labels

__all__ = ["mask_labels"]
