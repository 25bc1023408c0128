"""A checkpoint or a bundle, opened to be evaluated: whatever scores images, seen alike.

The one root module that imports parts (`train`, `runtime`), and each only when its kind of file is opened: a bundle is
evaluated without torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdpl.errors import UserError
from sdpl.evaluate.evaluation import Evaluated

if TYPE_CHECKING:
    from sdpl.runtime import Recognizer


def open_model(
    path: str | Path,
    threshold: float | None = None,
    backend: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    precision: str | None = None,
    device: int | None = None,
) -> Evaluated:
    """The model of a checkpoint (model.ckpt, in PyTorch) or a bundle (model.sdpl).

    threshold: for all categories, in place of the model's own. backend, threads, streams, precision, device: of a
    bundle, as for `Recognizer.open`. Raises UserError for anything else, or damaged files.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".sdpl":
        from sdpl.runtime import Recognizer

        return _bundle(Recognizer.open(path, backend, threads, streams, precision, device=device), threshold)
    given = {"--backend": backend != "auto", "--threads": threads, "--streams": streams, "--precision": precision}
    given["--device"] = device is not None
    for option in (name for name, value in given.items() if value):
        raise UserError(f"{option} needs a bundle: {path} is a checkpoint, which PyTorch runs in float32.")
    return _checkpoint(path, threshold)


def _bundle(recognizer: "Recognizer", threshold: float | None) -> Evaluated:
    return Evaluated(
        recognizer.scores,
        recognizer.attention,
        recognizer.categories,
        recognizer.image_size,
        _thresholds(recognizer.bundle.manifest.thresholds, threshold),
        str(recognizer),
        recognizer.reading,
    )


def _checkpoint(path: Path, threshold: float | None) -> Evaluated:
    from sdpl.train.checkpoint import load_checkpoint, restore_model

    content = load_checkpoint(path)
    config, model = restore_model(content, str(path))
    thresholds = _thresholds(content["thresholds"], threshold)
    return Evaluated(model.scorer(), model.attention, model.categories, config.model.image_size, thresholds, "PyTorch")


def _thresholds(own: tuple[float, ...] | list[float], threshold: float | None) -> np.ndarray:
    """One for each category, [C]."""
    return np.array(own) if threshold is None else np.full(len(own), threshold)
