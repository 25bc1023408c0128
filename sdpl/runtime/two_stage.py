"""Two stages on one stream: an encoder engine writes u and g to the GPU, the fused kernel turns them into logits.

Each batch size is served by a bucket (1, 2, 4 ... up to the profile's largest): buffers, and one CUDA graph of both
stages and the copy out, captured at first use. A batch between two buckets takes the larger one, whose other rows are
not looked at. How images come into a bucket: `sdpl.runtime.gpu_inputs`. Two batches may be on their way at once, each
in a slot (`sdpl.runtime.slots`).
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from sdpl.bundle import Bundle, to_scores
from sdpl.errors import UserError
from sdpl.kernels.launch import Kernels
from sdpl.manifest import Profile, Target
from sdpl.runtime.device import BrokenCaptureError, Cuda, DriverError, OutOfMemoryError, Pinned
from sdpl.runtime.gpu_head import GpuHead, Head, More, NoHead, Sizes
from sdpl.runtime.gpu_inputs import DecodedImages, HostPixels, Input, OnGpu
from sdpl.runtime.gpu_resize import GpuResize
from sdpl.runtime.slots import Bucket, Slot, Slots

CAPTURES = 8  # tries of a graph, one a call, before its calls stay single


class Encoder(Protocol):
    """An engine for image uint8 [B,S,S,3] -> u [B,L,K], g [B,L,E] in the kernel's dtype; where the engine is the whole
    model, scores [B,C], attention [B,C,L] and embedding [B,E], float32, take their places.

    Batches on different streams may run at once, from different threads; what a stream's batches need is its own.
    """

    def prepare(self, batch: int, stream: int) -> None:
        """Take the memory that a batch size needs on a stream. Raises OutOfMemoryError."""

    def forget(self, batch: int, stream: int) -> None:
        """Give that memory back."""

    def leave(self, stream: int) -> None:
        """Give back all memory of a stream, which is not used any more."""

    def enqueue(self, batch: int, image: int, outputs: Sequence[int], stream: int) -> None:
        """Enqueue one batch of a size that was prepared; image and outputs, in the graph's order, are addresses on the
        GPU, multiples of 256, and always the same for a size and a stream."""

    def capturable(self, stream: int) -> bool:
        """Whether `enqueue` may be captured into a graph, after it has run once for that batch."""

    def warmed(self) -> None:
        """A batch size has run for the first time: keep what the engine compiled for it, if it did."""

    def describe(self) -> dict[str, str]:
        """Library and version."""

    def close(self) -> None:
        """Free everything. Safe to call twice."""


class TwoStage:
    """A target on a GPU. Thread-safe: two calls overlap, further ones wait. Owns its encoder, kernels and resize.

    A forked child cannot use it (CUDA knows no forks): calls raise RuntimeError there.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        target: Target,
        encoder: Encoder,
        kernels: Kernels | None,
        device: Cuda,
        resize: GpuResize | None = None,
    ):
        """kernels: None for an encoder that is the whole model and writes its outputs. resize: of decoded
        images on this GPU, to the bundle's image size; None leaves that to the CPU."""
        self.name, self._pid = name, os.getpid()
        self._probability = bundle.manifest.probability
        self._encoder, self._device, self._resize = encoder, device, resize
        self._profile = target.profile or Profile()
        constants = bundle.head(target) if kernels else {}
        manifest = bundle.manifest
        given = manifest.embedding_size or 0
        joint, embed = (constants["v"].shape[1], constants["t"].shape[1]) if kernels else (0, given)
        size, locations = manifest.preprocessing.image_size, int(np.prod(manifest.map_size))
        self._sizes = Sizes(size, locations, len(manifest.categories), joint, embed)
        self._bytes = self._sizes.bytes(kernels.dtype if kernels else None)
        with device.current(), ExitStack() as made:  # whatever fails, nothing stays on the GPU
            for part in (kernels, encoder, resize):
                if part is not None:
                    made.callback(part.close)
            self._slots = Slots(device)
            made.callback(self._slots.destroy, device)
            stream = self._slots.all[0].stream
            self._head: Head = (
                GpuHead(constants, self._sizes, kernels, device, stream) if kernels else NoHead(given > 0)
            )
            made.pop_all()

    @property
    def batch_sizes(self) -> list[int]:
        """The buckets' batch sizes, smallest first."""
        return batch_sizes(self._profile)

    @property
    def largest_on_device(self) -> int:
        return self.batch_sizes[-1]

    @property
    def resizes(self) -> bool:
        return self._resize is not None

    def scores(self, images: Any) -> np.ndarray:
        return self._to_scores(self._run(images, None)[0])

    def attention(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        logits, attention = self._run(images, "attention")
        return self._to_scores(logits), attention

    def embeddings(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        logits, embeddings = self._run(images, "embedding")
        return self._to_scores(logits), embeddings

    def _to_scores(self, logits: np.ndarray) -> np.ndarray:
        return logits if isinstance(self._head, NoHead) else to_scores(logits, self._probability)

    def on_device(self, images: np.ndarray) -> Callable[[], None]:
        """A call that runs both stages on images already copied to the GPU and waits for them; for measuring."""
        self.scores(images)  # makes the bucket
        with self._slots.take(first=True) as slot, self._device.current():
            bucket = slot.buckets.get(self._fitting(len(images)))
            if bucket is None or bucket.batch < len(images):
                raise UserError(
                    f"a batch of {len(images)} does not go through the engine at once: measure a smaller one."
                )
            enqueue = functools.partial(self._both, slot, bucket, None)
            while "device" not in bucket.graphs:
                self._capture(slot, bucket, "device", enqueue)
            graph = bucket.graphs["device"]

        def call() -> None:
            with self._slots.take(first=True), self._device.current():
                if slot.buckets.get(bucket.batch) is not bucket:  # its buffers and its graph are freed
                    raise OutOfMemoryError(f"the GPU has no room for a batch of {bucket.batch} any more.")
                enqueue() if graph is None else self._device.replay(graph, slot.stream)
                self._device.synchronize(slot.stream)

        return call

    def describe(self) -> dict[str, str]:
        buckets = [bucket for slot in self._slots.all for bucket in slot.buckets.values()]
        graphs = any(graph for bucket in buckets for graph in bucket.graphs.values())
        about = {"cuda_graphs": str(graphs), "resize": "GPU" if self.resizes else "CPU"}
        broken = [times for bucket in buckets for times in bucket.broken.values() if times]
        if broken:
            given_up = sum(times >= CAPTURES for times in broken)
            about["broken_captures"] = f"{sum(broken)}, {given_up} graphs given up"
        return {"backend": self.name, **self._encoder.describe(), **about}

    def close(self) -> None:
        """Wait for what is on its way, then free everything, the encoder and the kernels too."""
        if os.getpid() != self._pid:  # what it holds is the parent's
            return
        slots = self._slots.close()
        with self._device.current():
            for slot in slots:
                self._device.synchronize(slot.stream)
            for slot in slots:
                self._leave(slot)
            self._encoder.close()
            for slot in slots:
                self._device.destroy_stream(slot.stream)
            self._head.close()
            if self._resize is not None:
                self._resize.close()

    def _run(self, images: Any, more: More) -> tuple[np.ndarray, np.ndarray]:
        """logits [B,C], and attention [B,C,L] or embeddings [B,E] if asked for, else [0], of uint8 [B,S,S,3] on the
        host or on this GPU, or of a list of decoded images."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this process was forked from the one that opened the recognizer: a GPU's work does not "
                "go on in a child; open it there"
            )
        with self._device.current():
            source = self._input(images)
            logits = np.empty((len(source), self._sizes.C), np.float32)
            asked = np.empty((len(source), *self._shape(more)) if more else 0, np.float32)
            with self._taken() as slot:
                done = self._fill(slot, source, logits, asked, more)
                if not done:
                    self._leave(slot)
            if not done:  # there is no room for a second slot: wait for the first
                with self._taken(first=True) as slot:
                    self._fill(slot, source, logits, asked, more)
        return logits, asked

    @contextmanager
    def _taken(self, first: bool = False) -> Iterator[Slot]:
        """A slot; nothing of it runs any more when it is given back, also after an error."""
        with self._slots.take(first) as slot:
            try:
                yield slot
            except BaseException:
                with suppress(DriverError):
                    self._device.synchronize(slot.stream)
                raise

    def _input(self, images: Any) -> Input:
        if hasattr(images, "__cuda_array_interface__"):
            return OnGpu(images, self._device)
        if isinstance(images, list):
            if self._resize is None:
                raise ValueError("this backend does not resize: expected images uint8 [B,S,S,3], got a list")
            return DecodedImages(images, self._resize, self._device)
        return HostPixels(images, self._device)

    def _fill(self, slot: Slot, source: Input, logits: np.ndarray, asked: np.ndarray, more: More) -> bool:
        """Run the images bucket by bucket, and fill the results. False when the GPU has no room for this slot, which is
        not the first; that one takes smaller parts, and the others' memory."""
        s, start, most = self._sizes, 0, self._profile.max
        while start < len(source):
            size = self._fitting(min(len(source) - start, most))
            n = min(size, len(source) - start)
            try:
                bucket = self._bucket(slot, size, more)
                source.place(slot, bucket, start, n)
                self._run_bucket(slot, bucket, more)
            except OutOfMemoryError:
                self._drop(slot, size)
                if slot.index > 0:
                    return False
                if self._retire_others():  # their memory may be enough
                    continue
                smaller = [other for other in self.batch_sizes if other < size]
                if not smaller:
                    raise
                most = smaller[-1]
                continue
            logits[start : start + n] = _floats(bucket.pinned["logits"], (n, s.C))
            if more:
                asked[start : start + n] = _floats(bucket.pinned[more], (n, *self._shape(more)))
            start += n
        return True

    def _run_bucket(self, slot: Slot, bucket: Bucket, more: More) -> None:
        """Run images that are in the bucket's buffer through its graph; until there is one in single calls, the first
        of which lets engines settle."""
        enqueue = functools.partial(self._stages, slot, bucket, more)
        kind = more or "scores"
        if kind not in bucket.graphs:
            with self._device.no_captures():  # a first run may wait for the whole GPU
                enqueue()
                self._device.synchronize(slot.stream)
                if not bucket.broken[kind]:
                    self._encoder.warmed()
                self._capture(slot, bucket, kind, enqueue)
            return
        graph = bucket.graphs[kind]
        enqueue() if graph is None else self._device.replay(graph, slot.stream)
        self._device.synchronize(slot.stream)

    def _capture(self, slot: Slot, bucket: Bucket, kind: str, enqueue: Callable[[], None]) -> None:
        """Keep the work as a graph; or None when the engine cannot be captured, or fails to be: calls then stay single.
        A capture that something else broke is left to the next call, CAPTURES times."""
        graph = None
        try:
            if self._encoder.capturable(slot.stream):
                graph = self._device.capture(slot.stream, enqueue)
        except BrokenCaptureError:
            bucket.broken[kind] += 1
            if bucket.broken[kind] < CAPTURES:
                return
        except (RuntimeError, UserError):
            pass
        bucket.graphs[kind] = graph

    def _stages(self, slot: Slot, bucket: Bucket, more: More) -> None:
        """Both stages and the copy of their results to the host."""
        self._both(slot, bucket, more)
        for name in ("logits", more) if more else ("logits",):
            size = bucket.batch * self._bytes[name]
            self._device.copy(bucket.pinned[name].pointer, bucket.pointers[name], size, slot.stream)

    def _both(self, slot: Slot, bucket: Bucket, more: More) -> None:
        outputs = [bucket.pointers[name] for name in self._head.outputs]
        self._encoder.enqueue(bucket.batch, bucket.pointers["image"], outputs, slot.stream)
        self._head.enqueue(bucket.batch, bucket.pointers, more, slot.stream)

    def _shape(self, more: More) -> tuple[int, ...]:
        """Of one image's embedding or attention."""
        return (self._sizes.E,) if more == "embedding" else (self._sizes.C, self._sizes.L)

    def _fitting(self, images: int) -> int:
        """The smallest bucket size that takes so many images, or the largest there is."""
        return next((size for size in self.batch_sizes if size >= images), self._profile.max)

    def _bucket(self, slot: Slot, batch: int, more: More) -> Bucket:
        """The slot's bucket of this size, with the buffers that are needed. Raises OutOfMemoryError."""
        bucket = slot.buckets.setdefault(batch, Bucket(batch, {}, {}))
        for name, each in self._bytes.items():
            asked = name not in ("attention", "embedding") or name == more
            if asked and name in ("logits", "attention", "embedding") and name not in bucket.pinned:
                bucket.pinned[name] = self._device.allocate_pinned(batch * each)
            if name not in bucket.pointers and (asked or name in self._head.outputs):
                bucket.pointers[name] = self._device.allocate(batch * each)
        self._encoder.prepare(batch, slot.stream)
        return bucket

    def _drop(self, slot: Slot, batch: int) -> None:
        """Free a bucket that the GPU has no room for."""
        self._device.synchronize(slot.stream)
        if batch in slot.buckets:
            slot.buckets.pop(batch).free(self._device)
        self._encoder.forget(batch, slot.stream)

    def _leave(self, slot: Slot) -> None:
        """Free everything that a slot holds but its stream."""
        slot.free(self._device)
        self._encoder.leave(slot.stream)

    def _retire_others(self) -> bool:
        """Give up all slots but the first, whose caller this is; whether there were any."""
        others = self._slots.retire()
        for slot in others:
            self._leave(slot)
            self._device.destroy_stream(slot.stream)
        return bool(others)


def batch_sizes(profile: Profile) -> list[int]:
    """Powers of two inside the profile, and its two ends."""
    powers = (1 << i for i in range(profile.max.bit_length()))
    return sorted({profile.min, profile.max, *(p for p in powers if profile.min <= p <= profile.max)})


def _floats(pinned: Pinned, shape: tuple[int, ...]) -> np.ndarray:
    return pinned.array[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)
