"""Two stages on one stream: an encoder engine writes u and g to the GPU, the fused kernel turns them into logits.

Each batch size is served by a bucket (1, 2, 4 ... up to the profile's largest): buffers, and one CUDA graph of the
copy in, both stages and the copy out, captured at first use. A batch between two buckets takes the larger one.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from sdpl.bundle import Bundle, Profile, Target, to_scores
from sdpl.errors import UserError
from sdpl.kernels.launch import BYTES, DeviceArray, Kernels, narrow
from sdpl.runtime.device import Cuda, OutOfMemoryError, Pinned


class Encoder(Protocol):
    """An engine for image uint8 [B,S,S,3] -> u [B,L,K], g [B,L,E] in the kernel's dtype."""

    def prepare(self, batch: int) -> None:
        """Take the memory that a batch size needs. Raises OutOfMemoryError."""

    def forget(self, batch: int) -> None:
        """Give that memory back."""

    def enqueue(self, batch: int, image: int, u: int, g: int, stream: int) -> None:
        """Enqueue one batch; arguments are addresses on the GPU."""

    def capturable(self, stream: int) -> bool:
        """Whether `enqueue` may be captured into a graph, after it has run once for that batch."""

    def describe(self) -> dict[str, str]:
        """Library and version."""

    def close(self) -> None:
        """Free everything."""


@dataclass(frozen=True)
class Sizes:
    """S image side, L locations, C categories, K joint dimension, E embedding dimension."""

    S: int
    L: int
    C: int
    K: int
    E: int


@dataclass
class Bucket:
    """What one batch size needs on the GPU. graphs: None for an engine that cannot be captured."""

    batch: int
    pointers: dict[str, int]
    pinned: dict[str, Pinned]
    graphs: dict[str, int | None] = field(default_factory=dict)


class TwoStage:
    """A target on a GPU. Thread-safe: calls take turns."""

    def __init__(self, name: str, bundle: Bundle, target: Target, encoder: Encoder, kernels: Kernels, device: Cuda):
        self.name = name
        self._probability = bundle.manifest.probability
        self._encoder, self._kernels, self._device = encoder, kernels, device
        self._profile = target.profile or Profile()
        constants = load_file(bundle.file(target.files["head"]))
        v, t = constants["v"], constants["t"]
        manifest = bundle.manifest
        size = manifest.preprocessing.image_size
        self._sizes = Sizes(size, int(np.prod(manifest.map_size)), len(v), v.shape[1], t.shape[1])
        self._buckets: dict[int, Bucket] = {}
        self._constants: dict[str, int] = {}
        self._lock = threading.Lock()
        self._open = True
        self._stream = device.make_stream()
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
        with self._lock:
            bucket = self._buckets.get(self._fitting(len(images)))
            if bucket is None or bucket.batch < len(images):
                raise UserError(
                    f"a batch of {len(images)} does not go through the engine at once: measure a smaller one."
                )
            enqueue = functools.partial(self._both, bucket, bucket.batch, bucket.pointers["image"], False)
            if "device" not in bucket.graphs:
                bucket.graphs["device"] = self._captured(enqueue)
            graph = bucket.graphs["device"]

        def call() -> None:
            with self._lock:
                self._device.use()
                enqueue() if graph is None else self._device.replay(graph, self._stream)
                self._device.synchronize(self._stream)

        return call

    def describe(self) -> dict[str, str]:
        graphs = [graph for bucket in self._buckets.values() for graph in bucket.graphs.values()]
        return {"backend": self.name, **self._encoder.describe(), "cuda_graphs": str(any(graphs))}

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._device.use()
            self._device.synchronize(self._stream)
            for bucket in self._buckets.values():
                self._free(bucket)
            for pointer in self._constants.values():
                self._device.free(pointer)
            self._encoder.close()
            self._device.destroy_stream(self._stream)

    def _run(self, images: Any, with_attention: bool) -> tuple[np.ndarray, np.ndarray]:
        """logits [B,C] and attention [B,C,L], or [0,C,L] without, of uint8 [B,S,S,3] on the host, or anywhere on this
        GPU."""
        on_gpu = hasattr(images, "__cuda_array_interface__")
        s = self._sizes
        logits = np.empty((images.shape[0], s.C), np.float32)
        attention = np.empty((images.shape[0] if with_attention else 0, s.C, s.L), np.float32)
        with self._lock:
            if not self._open:
                raise RuntimeError("this recognizer is closed")
            self._device.use()
            address = _device_source(images, self._device) if on_gpu else 0
            host = None if on_gpu else np.ascontiguousarray(images)
            start, most = 0, self._profile.max
            while start < len(logits):
                size = self._fitting(min(len(logits) - start, most))
                n = min(size, len(logits) - start)
                try:
                    bucket = self._bucket(size, with_attention)
                    if host is None:
                        self._run_in_place(bucket, n, address + start * s.S * s.S * 3, with_attention)
                    else:
                        self._run_bucket(bucket, host[start : start + n], with_attention)
                except OutOfMemoryError:  # the batch goes through in smaller parts, if there are any
                    self._drop(size)
                    smaller = [other for other in self.batch_sizes if other < size]
                    if not smaller:
                        raise
                    most = smaller[-1]
                    continue
                logits[start : start + n] = _floats(bucket.pinned["logits"], (n, s.C))
                if with_attention:
                    attention[start : start + n] = _floats(bucket.pinned["attention"], (n, s.C, s.L))
                start += n
        return logits, attention

    def _run_bucket(self, bucket: Bucket, images: np.ndarray, with_attention: bool) -> None:
        """Host images through the bucket's graph; the first time in single calls, so that engines settle."""
        flat = images.reshape(-1)
        bucket.pinned["image"].array[: flat.size] = flat
        bucket.pinned["image"].array[flat.size :] = 0

        def enqueue() -> None:
            self._device.copy(bucket.pointers["image"], bucket.pinned["image"].pointer, self._bytes(bucket)["image"], s)
            self._stages(bucket, bucket.batch, bucket.pointers["image"], with_attention)

        s, kind = self._stream, "attention" if with_attention else "scores"
        graph = bucket.graphs.get(kind)
        if graph is not None:
            self._device.replay(graph, s)
        else:
            enqueue()
        self._device.synchronize(s)
        if kind not in bucket.graphs:
            bucket.graphs[kind] = self._captured(enqueue)

    def _captured(self, enqueue: Callable[[], None]) -> int | None:
        """The work as a graph; None when the engine cannot be captured, or fails to be: calls then stay single."""
        if not self._encoder.capturable(self._stream):
            return None
        try:
            return self._device.capture(self._stream, enqueue)
        except (RuntimeError, UserError):
            return None

    def _run_in_place(self, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        """Images that are on the GPU already, read where they lie; their address changes, so without a graph."""
        if batch < self._profile.min:  # the engine takes no fewer: the rest of the bucket's own buffer is not looked at
            size = self._bytes(bucket)["image"] // bucket.batch * batch
            self._device.copy(bucket.pointers["image"], image, size, self._stream)
            batch, image = bucket.batch, bucket.pointers["image"]
        self._stages(bucket, batch, image, with_attention)
        self._device.synchronize(self._stream)

    def _stages(self, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        """Both stages and the copy of their results to the host."""
        self._both(bucket, batch, image, with_attention)
        for name in ("logits", "attention") if with_attention else ("logits",):
            self._device.copy(
                bucket.pinned[name].pointer, bucket.pointers[name], self._bytes(bucket)[name], self._stream
            )

    def _both(self, bucket: Bucket, batch: int, image: int, with_attention: bool) -> None:
        s, at, dtype = self._sizes, bucket.pointers, self._kernels.dtype
        self._encoder.enqueue(batch, image, at["u"], at["g"], self._stream)
        attention = DeviceArray(at["attention"], (batch, s.C, s.L), "float32") if with_attention else None
        self._kernels.forward(
            DeviceArray(at["u"], (batch, s.L, s.K), dtype),
            DeviceArray(self._constants["v"], (s.C, s.K), dtype),
            DeviceArray(self._constants["q"], (s.K,), "float32"),
            DeviceArray(at["g"], (batch, s.L, s.E), dtype),
            DeviceArray(self._constants["t"], (s.C, s.E), "float32"),
            DeviceArray(at["logits"], (batch, s.C), "float32"),
            attention,
            stream=self._stream,
        )

    def _fitting(self, images: int) -> int:
        """The smallest bucket size that takes so many images, or the largest there is."""
        return next((size for size in self.batch_sizes if size >= images), self._profile.max)

    def _bucket(self, batch: int, with_attention: bool) -> Bucket:
        """The bucket of this size, with the buffers that are needed. Raises OutOfMemoryError."""
        bucket = self._buckets.setdefault(batch, Bucket(batch, {}, {}))
        for name, size in self._bytes(bucket).items():
            if name in bucket.pointers or (name == "attention" and not with_attention):
                continue
            bucket.pointers[name] = self._device.allocate(size)
            if name in ("image", "logits", "attention"):
                bucket.pinned[name] = self._device.allocate_pinned(size)
        self._encoder.prepare(batch)
        return bucket

    def _drop(self, batch: int) -> None:
        """Free a bucket that the GPU has no room for."""
        if batch in self._buckets:
            self._free(self._buckets.pop(batch))
        self._encoder.forget(batch)

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
        pinned = self._device.allocate_pinned(array.nbytes)
        pointer = self._device.allocate(array.nbytes)
        pinned.array[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._device.copy(pointer, pinned.pointer, array.nbytes, self._stream)
        self._device.synchronize(self._stream)
        self._device.free_pinned(pinned)
        return pointer

    def _free(self, bucket: Bucket) -> None:
        for graph in bucket.graphs.values():
            if graph is not None:
                self._device.destroy_graph(graph)
        for pointer in bucket.pointers.values():
            self._device.free(pointer)
        for pinned in bucket.pinned.values():
            self._device.free_pinned(pinned)


def batch_sizes(profile: Profile) -> list[int]:
    """Powers of two inside the profile, and its two ends."""
    powers = (1 << i for i in range(profile.max.bit_length()))
    return sorted({profile.min, profile.max, *(p for p in powers if profile.min <= p <= profile.max)})


def _device_source(images: Any, device: Cuda) -> int:
    """The address of images on the GPU, once what makes them is done. Raises ValueError for gaps in them."""
    interface = images.__cuda_array_interface__
    if interface.get("stream"):
        device.synchronize(interface["stream"])
    elif interface.get("version", 0) < 3:  # PyTorch's: it does not say which stream is still writing
        device.synchronize_all()
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if strides is not None and tuple(strides) != tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))):
        raise ValueError(f"expected contiguous images on the GPU, got strides {tuple(strides)} for shape {shape}")
    return int(interface["data"][0])


def _floats(pinned: Pinned, shape: tuple[int, ...]) -> np.ndarray:
    return pinned.array[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)
