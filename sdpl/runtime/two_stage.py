"""Two stages on one stream: an encoder engine writes u and g to the GPU, the fused kernel turns them into logits.

Each batch size is served by a bucket (1, 2, 4 ... up to the profile's largest): buffers, and one CUDA graph of the
copy in, both stages and the copy out, captured at first use. A batch between two buckets takes the larger one.
Two batches may be on their way at once, each in a slot (`sdpl.runtime.slots`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdpl.bundle import Bundle, to_scores
from sdpl.errors import UserError
from sdpl.kernels.launch import BYTES, DeviceArray, Kernels, narrow
from sdpl.manifest import Profile, Target
from sdpl.runtime.device import Cuda, OutOfMemoryError, Pinned
from sdpl.runtime.slots import Bucket, Slot, Slots

ALIGNMENT = 256  # bytes; engines take no other addresses


class Encoder(Protocol):
    """An engine for image uint8 [B,S,S,3] -> u [B,L,K], g [B,L,E] in the kernel's dtype.

    Batches on different streams may run at once, from different threads; what a stream's batches need is its own.
    """

    def prepare(self, batch: int, stream: int) -> None:
        """Take the memory that a batch size needs on a stream. Raises OutOfMemoryError."""

    def forget(self, batch: int, stream: int) -> None:
        """Give that memory back."""

    def leave(self, stream: int) -> None:
        """Give back all memory of a stream, which is not used any more."""

    def enqueue(self, batch: int, image: int, u: int, g: int, stream: int) -> None:
        """Enqueue one batch; arguments are addresses on the GPU, multiples of 256."""

    def capturable(self, stream: int) -> bool:
        """Whether `enqueue` may be captured into a graph, after it has run once for that batch."""

    def warmed(self) -> None:
        """A batch size has run for the first time: keep what the engine compiled for it, if it did."""

    def describe(self) -> dict[str, str]:
        """Library and version."""

    def close(self) -> None:
        """Free everything. Safe to call twice."""


@dataclass(frozen=True)
class Sizes:
    """S image side, L locations, C categories, K joint dimension, E embedding dimension."""

    S: int
    L: int
    C: int
    K: int
    E: int


class TwoStage:
    """A target on a GPU. Thread-safe: two calls overlap, further ones wait. Owns its encoder and kernels."""

    def __init__(self, name: str, bundle: Bundle, target: Target, encoder: Encoder, kernels: Kernels, device: Cuda):
        self.name = name
        self._probability = bundle.manifest.probability
        self._encoder, self._kernels, self._device = encoder, kernels, device
        self._profile = target.profile or Profile()
        constants = bundle.head(target)
        v, t = constants["v"], constants["t"]
        manifest = bundle.manifest
        size = manifest.preprocessing.image_size
        self._sizes = Sizes(size, int(np.prod(manifest.map_size)), len(v), v.shape[1], t.shape[1])
        self._constants: dict[str, int] = {}
        with device.current():
            self._slots = Slots(device)
            try:
                for key, array in (("v", narrow(v, kernels.dtype)), ("q", constants["q"]), ("t", t)):
                    self._constants[key] = self._upload(array)
            except BaseException:  # whatever it was, nothing stays on the GPU
                self.close()
                raise

    @property
    def batch_sizes(self) -> list[int]:
        """The buckets' batch sizes, smallest first."""
        return batch_sizes(self._profile)

    @property
    def largest_on_device(self) -> int:
        return self.batch_sizes[-1]

    def scores(self, images: Any) -> np.ndarray:
        return to_scores(self._run(images, with_attention=False)[0], self._probability)

    def attention(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        logits, attention = self._run(images, with_attention=True)
        return to_scores(logits, self._probability), attention

    def on_device(self, images: np.ndarray) -> Callable[[], None]:
        """A call that runs both stages on images already copied to the GPU and waits for them; for measuring."""
        self.scores(images)  # makes the bucket
        with self._slots.take(first=True) as slot, self._device.current():
            bucket = slot.buckets.get(self._fitting(len(images)))
            if bucket is None or bucket.batch < len(images):
                raise UserError(
                    f"a batch of {len(images)} does not go through the engine at once: measure a smaller one."
                )
            enqueue = functools.partial(self._both, slot, bucket, bucket.batch, bucket.pointers["image"], False)
            if "device" not in bucket.graphs:
                bucket.graphs["device"] = self._captured(slot, enqueue)
            graph = bucket.graphs["device"]

        def call() -> None:
            with self._slots.take(first=True), self._device.current():
                enqueue() if graph is None else self._device.replay(graph, slot.stream)
                self._device.synchronize(slot.stream)

        return call

    def describe(self) -> dict[str, str]:
        buckets = [bucket for slot in self._slots.all for bucket in slot.buckets.values()]
        graphs = any(graph for bucket in buckets for graph in bucket.graphs.values())
        return {"backend": self.name, **self._encoder.describe(), "cuda_graphs": str(graphs)}

    def close(self) -> None:
        """Wait for what is on its way, then free everything, the encoder and the kernels too."""
        slots = self._slots.close()
        with self._device.current():
            for slot in slots:
                self._device.synchronize(slot.stream)
            for slot in slots:
                self._leave(slot)
            for pointer in self._constants.values():
                self._device.free(pointer)
            self._constants.clear()
            self._encoder.close()
            for slot in slots:
                self._device.destroy_stream(slot.stream)
            self._kernels.close()

    def _run(self, images: Any, with_attention: bool) -> tuple[np.ndarray, np.ndarray]:
        """logits [B,C] and attention [B,C,L], or [0,C,L] without, of uint8 [B,S,S,3] on the host, or anywhere on this
        GPU."""
        s = self._sizes
        logits = np.empty((images.shape[0], s.C), np.float32)
        attention = np.empty((images.shape[0] if with_attention else 0, s.C, s.L), np.float32)
        with self._device.current():
            if hasattr(images, "__cuda_array_interface__"):
                source: int | np.ndarray = _device_source(images, self._device)
            else:
                source = np.ascontiguousarray(images)
            with self._slots.take() as slot:
                done = self._fill(slot, source, logits, attention, with_attention)
                if not done:
                    self._leave(slot)
            if not done:  # there is no room for a second slot: wait for the first
                with self._slots.take(first=True) as slot:
                    self._fill(slot, source, logits, attention, with_attention)
        return logits, attention

    def _fill(
        self, slot: Slot, source: int | np.ndarray, logits: np.ndarray, attention: np.ndarray, with_attention: bool
    ) -> bool:
        """Run the images at an address or of an array, bucket by bucket, and fill the results. False when the GPU has
        no room for this slot, which is not the first; that one takes smaller parts, and the others' memory."""
        s, start, most = self._sizes, 0, self._profile.max
        while start < len(logits):
            size = self._fitting(min(len(logits) - start, most))
            n = min(size, len(logits) - start)
            try:
                bucket = self._bucket(slot, size, with_attention)
                if isinstance(source, int):
                    self._run_in_place(slot, bucket, n, source + start * s.S * s.S * 3, with_attention)
                else:
                    self._run_bucket(slot, bucket, source[start : start + n], with_attention)
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
            if with_attention:
                attention[start : start + n] = _floats(bucket.pinned["attention"], (n, s.C, s.L))
            start += n
        return True

    def _run_bucket(self, slot: Slot, bucket: Bucket, images: np.ndarray, with_attention: bool) -> None:
        """Host images through the bucket's graph; the first time in single calls, so that engines settle."""
        flat = images.reshape(-1)
        bucket.pinned["image"].array[: flat.size] = flat
        bucket.pinned["image"].array[flat.size :] = 0
        size = self._bytes(bucket)["image"]

        def enqueue() -> None:
            self._device.copy(bucket.pointers["image"], bucket.pinned["image"].pointer, size, slot.stream)
            self._stages(slot, bucket, bucket.batch, bucket.pointers["image"], with_attention)

        kind = "attention" if with_attention else "scores"
        graph = bucket.graphs.get(kind)
        if graph is not None:
            self._device.replay(graph, slot.stream)
        else:
            enqueue()
        self._device.synchronize(slot.stream)
        if kind not in bucket.graphs:
            self._encoder.warmed()
            bucket.graphs[kind] = self._captured(slot, enqueue)

    def _captured(self, slot: Slot, enqueue: Callable[[], None]) -> int | None:
        """The work as a graph; None when the engine cannot be captured, or fails to be: calls then stay single."""
        if not self._encoder.capturable(slot.stream):
            return None
        try:
            return self._device.capture(slot.stream, enqueue)
        except (RuntimeError, UserError):
            return None

    def _run_in_place(self, slot: Slot, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        """Images that are on the GPU already, read where they lie; their address changes, so without a graph.

        They are copied into the bucket where the engine would not take them: an address that is not aligned, or fewer
        than it takes, in which case the rest of the bucket's own buffer is not looked at.
        """
        if batch < self._profile.min or image % ALIGNMENT:
            size = self._bytes(bucket)["image"] // bucket.batch * batch
            self._device.copy(bucket.pointers["image"], image, size, slot.stream)
            image = bucket.pointers["image"]
            batch = max(batch, self._profile.min)
        self._stages(slot, bucket, batch, image, with_attention)
        self._device.synchronize(slot.stream)

    def _stages(self, slot: Slot, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        """Both stages and the copy of their results to the host."""
        self._both(slot, bucket, batch, image, with_attention)
        for name in ("logits", "attention") if with_attention else ("logits",):
            self._device.copy(
                bucket.pinned[name].pointer, bucket.pointers[name], self._bytes(bucket)[name], slot.stream
            )

    def _both(self, slot: Slot, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        self._encoder.enqueue(batch, image, bucket.pointers["u"], bucket.pointers["g"], slot.stream)
        self._head(slot, bucket, batch, with_attention)

    def _head(self, slot: Slot, bucket: Bucket, batch: int, with_attention: bool) -> None:
        """The second stage: logits, and attention if it is asked for, from u and g."""
        s, at, dtype = self._sizes, bucket.pointers, self._kernels.dtype
        attention = DeviceArray(at["attention"], (batch, s.C, s.L), "float32") if with_attention else None
        self._kernels.forward(
            DeviceArray(at["u"], (batch, s.L, s.K), dtype),
            DeviceArray(self._constants["v"], (s.C, s.K), dtype),
            DeviceArray(self._constants["q"], (s.K,), "float32"),
            DeviceArray(at["g"], (batch, s.L, s.E), dtype),
            DeviceArray(self._constants["t"], (s.C, s.E), "float32"),
            DeviceArray(at["logits"], (batch, s.C), "float32"),
            attention,
            stream=slot.stream,
        )

    def _fitting(self, images: int) -> int:
        """The smallest bucket size that takes so many images, or the largest there is."""
        return next((size for size in self.batch_sizes if size >= images), self._profile.max)

    def _bucket(self, slot: Slot, batch: int, with_attention: bool) -> Bucket:
        """The slot's bucket of this size, with the buffers that are needed. Raises OutOfMemoryError."""
        bucket = slot.buckets.setdefault(batch, Bucket(batch, {}, {}))
        for name, size in self._bytes(bucket).items():
            if name in bucket.pointers or (name == "attention" and not with_attention):
                continue
            if name in ("image", "logits", "attention") and name not in bucket.pinned:
                bucket.pinned[name] = self._device.allocate_pinned(size)
            bucket.pointers[name] = self._device.allocate(size)
        self._encoder.prepare(batch, slot.stream)
        return bucket

    def _drop(self, slot: Slot, batch: int) -> None:
        """Free a bucket that the GPU has no room for."""
        if batch in slot.buckets:
            slot.buckets.pop(batch).free(self._device)
        self._encoder.forget(batch, slot.stream)

    def _leave(self, slot: Slot) -> None:
        """Free everything that a slot holds but its stream."""
        for bucket in slot.buckets.values():
            bucket.free(self._device)
        slot.buckets.clear()
        self._encoder.leave(slot.stream)

    def _retire_others(self) -> bool:
        """Give up all slots but the first, whose caller this is; whether there were any."""
        others = self._slots.retire()
        for slot in others:
            self._leave(slot)
            self._device.destroy_stream(slot.stream)
        return bool(others)

    def _bytes(self, bucket: Bucket) -> dict[str, int]:
        s, item = self._sizes, BYTES[self._kernels.dtype]
        each = {
            "image": s.S * s.S * 3,
            "u": s.L * s.K * item,
            "g": s.L * s.E * item,
            "logits": s.C * 4,
            "attention": s.C * s.L * 4,
        }
        return {name: bucket.batch * size for name, size in each.items()}

    def _upload(self, array: np.ndarray) -> int:
        stream = self._slots.all[0].stream
        pinned = self._device.allocate_pinned(array.nbytes)
        try:
            pointer = self._device.allocate(array.nbytes)
            pinned.array[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            self._device.copy(pointer, pinned.pointer, array.nbytes, stream)
            self._device.synchronize(stream)
        finally:
            self._device.free_pinned(pinned)
        return pointer


def batch_sizes(profile: Profile) -> list[int]:
    """Powers of two inside the profile, and its two ends."""
    powers = (1 << i for i in range(profile.max.bit_length()))
    return sorted({profile.min, profile.max, *(p for p in powers if profile.min <= p <= profile.max)})


def _device_source(images: Any, device: Cuda) -> int:
    """The address of images on the GPU, once what makes them is done. Raises ValueError for gaps in them, and for
    images on another GPU."""
    interface = images.__cuda_array_interface__
    address, shape, strides = int(interface["data"][0]), tuple(interface["shape"]), interface.get("strides")
    if strides is not None and tuple(strides) != tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))):
        raise ValueError(f"expected contiguous images on the GPU, got strides {tuple(strides)} for shape {shape}")
    holder = device.device_of(address)
    if holder != device.device_id:
        where = "memory that CUDA does not know" if holder is None else f"device {holder}"
        raise ValueError(f"expected images on device {device.device_id}, got {where}")
    if interface.get("stream"):
        device.synchronize(interface["stream"])
    elif interface.get("version", 0) < 3:  # PyTorch's: it does not say which stream is still writing
        device.synchronize_all()
    return address


def _floats(pinned: Pinned, shape: tuple[int, ...]) -> np.ndarray:
    return pinned.array[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)
