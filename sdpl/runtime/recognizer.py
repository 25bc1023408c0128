"""The recognizer: a bundle, opened on one backend."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.kernels.gpu import named_device
from sdpl.pipeline import Decoder, Pixels, Reading, stream
from sdpl.preprocess import ImageSource, preprocess
from sdpl.preprocess.inputs import ChannelOrder, ImageInput, OneImage, as_given, as_source, sources
from sdpl.runtime.backends import Choice, Wanted, open_backend
from sdpl.runtime.cpu import whole_number
from sdpl.runtime.decoding import Decoding
from sdpl.runtime.recognition import Recognition, Scored
from sdpl.text import counted

Source = TypeVar("Source")


class Recognizer:
    """Scores images with a bundle that `open` has opened. Thread-safe; use as a context manager, or call `close`.

    A forked child may go on using it on a CPU: threads and engine begin anew there at its first call, from the bundle's
    files, since neither ONNX Runtime's sessions nor OpenVINO's models can be used, or freed, in a child. An iterator of
    results that was begun before the fork, and any call on a GPU, raise RuntimeError in the child: open it there.
    """

    def __init__(self, bundle: Bundle, choice: Choice, device: int = 0):
        """device: the number of the GPU that the choice was made for, whether it takes one or not."""
        self.bundle, self.device = bundle, device
        self.target, self.backend, self.skipped = choice.target, choice.backend, choice.skipped
        self.chosen, self._closed = choice.reason, False

    @classmethod
    def open(
        cls,
        path: str | Path,
        backend: str = "auto",
        threads: int | None = None,
        streams: int | None = None,
        precision: str | None = None,
        measure: bool = False,
        device: int | None = None,
    ) -> "Recognizer":
        """Open a bundle. backend: a target's name, a backend's, or "auto" for the fastest that runs here.

        precision: the least exact that "auto" or a backend may take, such as "int8" (also "auto:int8"); by default the
        bundle's own default, else float32: a lower one is never taken unasked. threads: cores used on a CPU; None for
        all physical ones that this process has. streams: calls that share them, for throughput. measure: first time the
        targets that were not yet timed on this machine, and keep that in the bundle. device: the number of the GPU, as
        `sdpl-info` lists them; by default the first, if there is one.

        `target` is what was taken, `chosen` how, `skipped` why others were not. Raises UserError when the bundle is
        damaged or nothing of it runs here, and for a device that is not there.
        """
        bundle = Bundle.open(path)
        wanted = Wanted.of(backend, precision, threads, streams, named_device(device))
        if measure:
            from sdpl.runtime.measuring import measure_missing

            measure_missing(bundle, wanted)
        return cls(bundle, open_backend(bundle, wanted), wanted.device)

    def __repr__(self) -> str:
        size = f"{counted(len(self.categories))}, {self.image_size} px"
        return f"Recognizer({str(self.bundle.path)!r}: {self}, {size})"

    def __str__(self) -> str:
        """The target in one line: `openvino:fp32 (openvino 2026.4.1, 2 threads; measured on this machine)`."""
        about = self.backend.describe()
        parts = [about["library"], *([about["threads"]] if "threads" in about else [])]
        return f"{self.target} ({', '.join(parts)}; {self.chosen})"

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The threads that decode images, started when first needed."""
        return Decoder()

    @property
    def categories(self) -> tuple[str, ...]:
        """The names, in the order of the scores."""
        return self.bundle.manifest.categories

    @property
    def image_size(self) -> int:
        """S: the side of a preprocessed image in pixels."""
        return self.bundle.manifest.preprocessing.image_size

    def scores(self, images: Any) -> np.ndarray:
        """float32 [B,C] in 0..1 from preprocessed images, uint8 [B,S,S,3]. An empty batch gives [0,C].

        On a GPU backend the images may also lie on that GPU: anything with `__cuda_array_interface__`; they never leave
        it. A backend that resizes (`reading`) also takes a list of decoded pictures, uint8 [H,W,3] of any sizes.
        Raises ValueError for another shape or type.
        """
        if self._check(images) == 0:
            return np.zeros((0, len(self.categories)), dtype=np.float32)
        return self.backend.scores(images)

    def attention(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and, for each category, where the model looked: float32 [B,C,h,w], adding up to 1."""
        self._check(images)
        if images.shape[0] == 0:
            empty = np.zeros((0, len(self.categories)), np.float32)
            return empty, np.zeros((*empty.shape, *self.bundle.manifest.map_size), np.float32)
        return self._maps(images)

    @property
    def embedding_size(self) -> int:
        """E of `embeddings`. Raises UserError that says why this bundle gives none."""
        manifest = self.bundle.manifest
        if manifest.embedding_size is not None:
            return manifest.embedding_size
        if manifest.config.get("model", {}).get("pooling") == "fused":
            raise UserError(
                f"{self.bundle.path} has no embeddings: model.pooling = 'fused' pools a map of its own for each "
                "category; train with 'projected' or 'trunk'."
            )
        raise UserError(
            f"{self.bundle.path} has no embeddings: an older sdpl exported it. Export the checkpoint again."
        )

    def embeddings(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and embeddings, float32 [B,E], of preprocessed images as `scores` takes them.

        An embedding is the mean of g over the locations at unit length (`sdpl.kernels.reference.mean_embedding`): the
        image as a point of the space in which the text features lie. Raises UserError as `embedding_size` does.
        """
        count, size = self._check(images), self.embedding_size
        if count == 0:
            return np.zeros((0, len(self.categories)), np.float32), np.zeros((0, size), np.float32)
        return self.backend.embeddings(images)

    @overload
    def embed(  # type: ignore[overload-overlap]  # an open file is an iterator of bytes too
        self, images: OneImage, batch_size: int | None = None, *, channels: ChannelOrder = "rgb"
    ) -> np.ndarray: ...

    @overload
    def embed(
        self, images: Iterator[Source], batch_size: int | None = None, *, channels: ChannelOrder = "rgb"
    ) -> Iterator[np.ndarray]: ...

    @overload
    def embed(self, images: Any, batch_size: int | None = None, *, channels: ChannelOrder = "rgb") -> np.ndarray: ...

    def embed(
        self,
        images: ImageInput | Iterable[ImageInput],
        batch_size: int | None = None,
        *,
        channels: ChannelOrder = "rgb",
    ) -> Any:
        """Embeddings, of unit length, of images as `recognize` takes them: their dot product is the cosine.

        One image gives float32 [E]; a list, or an array [B,H,W,3], gives [N,E]; an iterator gives an iterator of [E].
        Raises UserError naming a bad image, and as `embedding_size` does.
        """
        size = self.embedding_size  # before anything is read
        found = as_given(images, self._embedded(sources(images, channels), batch_size))
        if isinstance(found, list):
            return np.stack(found) if found else np.zeros((0, size), np.float32)
        return found

    @overload
    def recognize(  # type: ignore[overload-overlap]  # an open file is an iterator of bytes too
        self,
        images: OneImage,
        threshold: float | None = None,
        batch_size: int | None = None,
        *,
        attention: bool = False,
        channels: ChannelOrder = "rgb",
    ) -> Recognition: ...

    @overload
    def recognize(
        self,
        images: list[Source] | tuple[Source, ...],
        threshold: float | None = None,
        batch_size: int | None = None,
        *,
        attention: bool = False,
        channels: ChannelOrder = "rgb",
    ) -> list[Recognition]: ...

    @overload
    def recognize(
        self,
        images: Iterator[Source],
        threshold: float | None = None,
        batch_size: int | None = None,
        *,
        attention: bool = False,
        channels: ChannelOrder = "rgb",
    ) -> Iterator[Recognition]: ...

    @overload
    def recognize(
        self,
        images: Any,
        threshold: float | None = None,
        batch_size: int | None = None,
        *,
        attention: bool = False,
        channels: ChannelOrder = "rgb",
    ) -> Any: ...

    def recognize(
        self,
        images: ImageInput | Iterable[ImageInput],
        threshold: float | None = None,
        batch_size: int | None = None,
        *,
        attention: bool = False,
        channels: ChannelOrder = "rgb",
    ) -> Any:
        """Labels and scores of one image or of many, in their order.

        images: paths, encoded bytes, PIL images, arrays or tensors uint8 [H,W,3] or [H,W], files open for reading
        bytes. One of these gives one `Recognition`; a list, or an array [B,H,W,3], gives a list; an iterator, of any
        length, gives an iterator of results as they come. A plain string is one path.
        threshold: for all categories, instead of the bundle's own. batch_size: images per call of the engine; by
        default the largest that the backend takes well. attention: also keep where the model looked for each category.
        channels: of arrays; "bgr" for OpenCV's. Raises UserError naming a bad image; `stream` goes on behind it.
        """
        return as_given(images, self._recognized(sources(images, channels), threshold, batch_size, attention))

    def stream(
        self,
        sources: Iterable[Source],
        with_attention: bool = False,
        batch_size: int | None = None,
        with_embedding: bool = False,
    ) -> Iterator[tuple[Source, Scored | UserError]]:
        """Each image with its scores, or with the UserError that says why it could not be read, in order.

        sources: images as `recognize` takes them, of any number. The next images are decoded in threads while these
        run; what is in memory at a time is a few batches. Where the backend resizes, threads only decode. Closing the
        iterator ends it. Raises ValueError when both attention and embeddings are asked for: a pass gives one of them.
        """
        if with_attention and with_embedding:
            raise ValueError("expected with_attention or with_embedding, got both: a pass over the images gives one")
        if self._closed:
            raise RuntimeError("this recognizer is closed")
        size = whole_number("batch_size", batch_size) or self.backend.batch_sizes[-1]
        run = self._attended if with_attention else self._with_embeddings if with_embedding else self._scored
        reading = self.reading()
        yield from stream(self.decoder, sources, reading.load, run, size, reading.collate)

    def reading(self) -> Reading:
        """How the images of one run are read for `scores`, `attention` and `embeddings`: to pixels of the model's size,
        or, where the backend resizes, only decoded."""
        return Decoding(self.image_size) if self.backend.resizes else Pixels(self.image_size)

    def recognition(
        self,
        scores: np.ndarray,
        threshold: float | None = None,
        *,
        image: ImageSource | None = None,
        attention: np.ndarray | None = None,
    ) -> Recognition:
        """The recognition of one image's scores [C]; it keeps the image and its attention [C,h,w], if given.

        Raises UserError for a threshold outside 0..1.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold!r}: expected a number from 0 to 1.")
        thresholds = self.bundle.manifest.thresholds if threshold is None else [threshold] * len(self.categories)
        order = np.argsort(-scores, kind="stable")
        labels = tuple(self.categories[c] for c in order if scores[c] >= thresholds[c])
        best_first = {self.categories[c]: float(scores[c]) for c in order}
        maps = {} if attention is None else dict(zip(self.categories, attention, strict=True))
        return Recognition(labels, best_first, self.target, image, maps)

    def preprocess(self, image: ImageInput, channels: ChannelOrder = "rgb") -> np.ndarray:
        """uint8 [S,S,3]: this model's input for one image, as `recognize` takes it."""
        return preprocess(as_source(image, channels), self.image_size)

    def close(self) -> None:
        """Free the engine and the threads that decode."""
        self._closed = True
        self.backend.close()
        if "decoder" in vars(self):
            self.decoder.close()

    def __enter__(self) -> "Recognizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scored(self, images: Any) -> Iterator[Scored]:
        return (Scored(scores, self.target) for scores in self.backend.scores(images))

    def _attended(self, images: Any) -> Iterator[Scored]:
        return (Scored(scores, self.target, maps) for scores, maps in zip(*self._maps(images), strict=True))

    def _with_embeddings(self, images: Any) -> Iterator[Scored]:
        pairs = zip(*self.backend.embeddings(images), strict=True)
        return (Scored(scores, self.target, embedding=embedding) for scores, embedding in pairs)

    def _maps(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B,C] and attention [B,C,h,w]."""
        scores, attention = self.backend.attention(images)
        return scores, attention.reshape(*scores.shape, *self.bundle.manifest.map_size)

    def _embedded(self, images: Iterable[ImageSource], batch_size: int | None) -> Iterator[np.ndarray]:
        for _, scored in self.stream(images, batch_size=batch_size, with_embedding=True):
            if isinstance(scored, UserError):
                raise scored
            if scored.embedding is not None:
                yield scored.embedding

    def _recognized(
        self, images: Iterable[ImageSource], threshold: float | None, batch_size: int | None, attention: bool
    ) -> Iterator[Recognition]:
        for image, scored in self.stream(images, attention, batch_size):
            if isinstance(scored, UserError):
                raise scored
            yield self.recognition(scored.scores, threshold, image=image, attention=scored.attention)

    def _check(self, images: Any) -> int:
        """How many images there are. Raises ValueError for what the backend does not take; it looks at lists itself."""
        if isinstance(images, list) and self.backend.resizes:
            return len(images)
        if not hasattr(images, "shape"):
            raise ValueError(
                f"expected images uint8 [B,{self.image_size},{self.image_size},3], got {type(images).__name__}"
            )
        side, shape = self.image_size, tuple(images.shape)
        dtype = np.dtype(getattr(images, "__cuda_array_interface__", {}).get("typestr") or images.dtype)
        if len(shape) != 4 or shape[1:] != (side, side, 3) or dtype != np.uint8:
            raise ValueError(f"expected images uint8 [B,{side},{side},3], got {dtype} {list(shape)}")
        return int(shape[0])
