"""The metrics under the name by which users of training know them; `sdpl.evaluate.metrics` is the definition."""

from sdpl.evaluate.metrics import f1_metrics, mean_average_precision

__all__ = ["f1_metrics", "mean_average_precision"]
