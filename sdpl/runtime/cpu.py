"""Whole models on a CPU: cores, streams, and ONNX Runtime's CPU provider. OpenVINO: `sdpl.runtime.openvino`."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.bundle import Bundle
from sdpl.cores import available_cores, physical_cores
from sdpl.errors import UserError
from sdpl.forks import begin_anew_in_children, never_free
from sdpl.manifest import Target

BATCH_SIZES = (1, 2, 4, 8, 16)  # more gain nothing, and take memory


@dataclass(frozen=True)
class Cores:
    """How a model uses the cores: `threads` of them in all, shared by `streams` calls that run at once.

    One stream gives the lowest latency of a call; several give more images a second to several callers, or to one whose
    batches are divided.
    """

    threads: int
    streams: int = 1

    @classmethod
    def of(cls, threads: int | None = None, streams: int | None = None) -> "Cores":
        """threads: None for every physical core that this process has. Raises UserError for more than there are."""
        here = available_cores()
        threads = whole_number("--threads", threads) or physical_cores()
        streams = whole_number("--streams", streams) or 1
        for option, asked in (("--threads", threads), ("--streams", streams)):
            if asked > here:
                raise UserError(f"{option} {asked}: this process has {here} cores (affinity and cgroup limits count).")
        if streams > threads:
            raise UserError(f"--streams {streams}: each needs a thread of its own, and --threads is {threads}.")
        return cls(threads, streams)

    def __str__(self) -> str:
        streams = f" in {self.streams} streams" if self.streams > 1 else ""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}{streams}"


def whole_number(option: str, value: int | None) -> int | None:
    """The value of an option that is None or at least 1. Raises UserError."""
    if value is not None and (not isinstance(value, int | np.integer) or value < 1):
        raise UserError(f"{option} {value!r}: expected a whole number, at least 1.")
    return value


class CpuModel(ABC):
    """A whole model, image -> scores, attention, embedding, on a CPU. Thread-safe. An engine fills in `load`, `infer`.

    In a forked child it is loaded anew at the first call: engines have threads, which a child has not.
    """

    def __init__(self, bundle: Bundle, target: Target, cores: Cores, description: dict[str, str]):
        """Raises UserError when the model cannot be loaded."""
        self._cores, self._open = cores, True
        self._description = {**description, "threads": str(cores)}
        self._source = (bundle, target, cores)
        self._engine: Any = self.load(*self._source)
        self._begin()
        begin_anew_in_children(self)

    @abstractmethod
    def load(self, bundle: Bundle, target: Target, cores: Cores) -> Any:
        """The engine, ready to run. Raises UserError."""

    @abstractmethod
    def infer(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        """These outputs for uint8 [B,S,S,3]."""

    def after_fork(self) -> None:
        if self._engine is not None:
            never_free(self._engine)
        self._engine = None
        self._begin()

    def _begin(self) -> None:
        self._pool = ThreadPoolExecutor(self._cores.streams, "sdpl-stream") if self._cores.streams > 1 else None
        self._calls, self._idle = 0, threading.Condition()  # running now; told when one ends
        self._loading = threading.Lock()

    @property
    def batch_sizes(self) -> Sequence[int]:
        return BATCH_SIZES

    @property
    def resizes(self) -> bool:
        return False

    @property
    def largest_on_device(self) -> int:
        return 0

    def on_device(self, images: np.ndarray) -> Callable[[], object]:
        raise ValueError("a CPU has no memory of its own to measure from")

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self._run(["scores"], images)[0]

    def attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, attention = self._run(["scores", "attention"], images)
        return scores, attention

    def embeddings(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, embeddings = self._run(["scores", "embedding"], images)
        return scores, embeddings

    def describe(self) -> dict[str, str]:
        return self._description

    def close(self) -> None:
        with self._idle:
            self._open = False
            self._idle.wait_for(lambda: self._calls == 0)  # what other threads run is finished first
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._engine = None

    def _run(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        """One batch, divided among the streams."""
        with self._idle:
            if not self._open:
                raise RuntimeError("this recognizer is closed")
            self._calls += 1
        try:
            return self._run_open(outputs, images)
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def _run_open(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        with self._loading:
            if self._engine is None:
                self._engine = self.load(*self._source)
        images = np.ascontiguousarray(images)
        parts = np.array_split(images, min(self._cores.streams, len(images)))
        if self._pool is None or len(parts) == 1:
            return self.infer(outputs, images)
        results = list(self._pool.map(lambda part: self.infer(outputs, part), parts))
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def model_path(bundle: Bundle, target: Target) -> Path:
    """The graph of a target that is a whole model, after the hashes of all its files have been checked."""
    if "weights" in target.files:
        bundle.file(target.files["weights"])
    return bundle.file(target.files["model"])


def require_shapes(
    bundle: Bundle, path: Path, image: Sequence[Any], scores: Sequence[Any], attention: Sequence[Any]
) -> None:
    """Raise UserError when a graph's shapes are not those of the manifest."""
    manifest = bundle.manifest
    expected = (manifest.preprocessing.image_size, len(manifest.categories), math.prod(manifest.map_size))
    if (image[1], scores[1], attention[2]) != expected:
        raise UserError(f"{path}: does not fit its manifest (size, categories or map). Export the checkpoint again.")


class OnnxRuntimeCpu(CpuModel):
    """A whole model on ONNX Runtime's CPU provider."""

    def __init__(self, bundle: Bundle, target: Target, cores: Cores):
        import onnxruntime

        about = {
            "backend": "onnxruntime-cpu",
            "library": f"onnxruntime {onnxruntime.__version__}",
            "provider": "CPUExecutionProvider",
        }
        super().__init__(bundle, target, cores, about)

    def load(self, bundle: Bundle, target: Target, cores: Cores) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = max(1, cores.threads // cores.streams)  # the callers' own threads work too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # docs/decisions/0060
        path = model_path(bundle, target)
        state = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()  # its errors share no base class
        own = (e for e in state if isinstance(e, type) and issubclass(e, Exception))
        failures: tuple[type[Exception], ...] = (ValueError, *own)  # ValueError: names that are not UTF-8
        self._path, self._failures = path, failures
        try:
            session = onnxruntime.InferenceSession(
                path,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # there is nothing to fall back to, and it prints
            )
        except failures as error:
            raise UserError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]}).") from None
        (image,), (scores, attention, *_) = session.get_inputs(), session.get_outputs()
        require_shapes(bundle, path, image.shape, scores.shape, attention.shape)
        return session

    def infer(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        try:
            results: list[np.ndarray] = self._engine.run(outputs, {"image": images})
        except self._failures as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._path}: ONNX Runtime cannot run it ({reason}). Export the checkpoint again."
            ) from None
        return results
