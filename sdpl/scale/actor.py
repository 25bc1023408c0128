"""For pipelines that are built on Ray Data already: a recognizer as a class for `map_batches`.

    import ray
    from sdpl.scale import RecognizerActor

    photos = ray.data.read_binary_files("s3://bucket/photos/", include_paths=True)
    scored = photos.map_batches(RecognizerActor, fn_constructor_args=["model.sdpl"], batch_size=64, concurrency=4)
    scored.drop_columns(["bytes"]).write_parquet("s3://bucket/scores/")

Whether a killed pipeline goes on where it was is then Ray Data's matter; `sdpl-score` keeps its own promise.
"""

from typing import Any

import numpy as np

from sdpl.errors import UserError
from sdpl.runtime import Recognizer

COLUMNS = ("bytes", "image", "path")


class RecognizerActor:
    """Called with a batch of columns, adds `scores` float32 [N,C] (NaN for a bad image) and `error` (text, or empty);
    with `embeddings` also `embedding` float32 [N,E], as `Recognizer.embed` gives them.

    The images come from `column`: encoded bytes or paths; by default the first of "bytes", "image", "path" that is
    there. Opens the bundle once, where Ray places it. Needs no Ray itself.
    """

    def __init__(
        self,
        bundle: str,
        backend: str = "auto",
        threads: int | None = None,
        column: str | None = None,
        embeddings: bool = False,
    ):
        """Raises UserError when the bundle cannot be opened, or has no embeddings and they are asked for."""
        self._recognizer = Recognizer.open(bundle, backend, threads)
        self._column = column
        self._embedding_size = self._recognizer.embedding_size if embeddings else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Raises UserError when the batch has no column with images."""
        column = self._column or next((name for name in COLUMNS if name in batch), None)
        if column is None or column not in batch:
            raise UserError(f"the batch has no column {column or ' or '.join(COLUMNS)}; it has {', '.join(batch)}.")
        rows = list(batch[column])
        scores = np.full((len(rows), len(self._recognizer.categories)), np.nan, np.float32)
        errors = np.full(len(rows), "", dtype=object)
        added: dict[str, Any] = {"scores": scores, "error": errors}
        if self._embedding_size is not None:
            added["embedding"] = np.full((len(rows), self._embedding_size), np.nan, np.float32)
        results = self._recognizer.stream(rows, with_embedding="embedding" in added)
        for i, (_, result) in enumerate(results):
            if isinstance(result, UserError):
                errors[i] = str(result)
                continue
            scores[i] = result.scores
            if result.embedding is not None:
                added["embedding"][i] = result.embedding
        return {**batch, **added}
