"""Engines for the first stage on a GPU: ONNX Runtime's CUDA provider, TensorRT-RTX and TensorRT."""

import contextlib
import ctypes
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.manifest import CACHE, Target
from sdpl.runtime.availability import LIBRARY_FAILS, invalid_engine, logger, rebuild
from sdpl.runtime.cpu import model_path
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.two_stage import Encoder
from sdpl.targets import BACKENDS, PRECISIONS

_WANT_OF_MEMORY = re.compile(  # in a library's words; an illegal access is none, nor is an allocation strategy
    r"(out ?of|too little|insufficient|not enough) ?memory|bad_alloc|alloc(ation)?[_ ]?failed|"
    r"(fail(ed|ure|s)?|unable|cannot|could not|can't)( to)?( be)? ?alloc",
    re.IGNORECASE,
)
_preloading = threading.Lock()


def outputs_of(bundle: Bundle, target: Target) -> tuple[str, ...]:
    """What a target's graph gives: u and g for the kernel, or all there is to know."""
    if not target.is_whole:
        return ("u", "g")
    return ("scores", "attention") if bundle.manifest.embedding_size is None else ("scores", "attention", "embedding")


class OnnxRuntimeCuda:
    """An encoder graph on ONNX Runtime's CUDA provider, with its inputs and outputs bound to our memory.

    It runs on a stream of its own choosing and waits for it, so it is not captured.
    """

    def __init__(self, bundle: Bundle, name: str, target: Target, device: Cuda):
        import onnxruntime

        path = model_path(bundle, target) if target.is_whole else bundle.file(target.files["encoder"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # TF32 is on by default: 10 bits of mantissa move scores by more than fp32 may
        settings = {"device_id": str(device.device_id), "use_tf32": str(int(target.precision != "fp32"))}
        with device.current(), device.no_captures():
            _preload()
            try:
                self._session = onnxruntime.InferenceSession(
                    path,
                    options,
                    providers=[("CUDAExecutionProvider", settings)],
                    enable_fallback=0,  # to the CPU, and it prints why
                )
            except Exception as error:  # its errors share no class and no code
                raise _not_loaded(name, error) from None
        if "CUDAExecutionProvider" not in self._session.get_providers():
            raise UserError(f"{name}: ONNX Runtime cannot use its CUDA provider ({_why_no_cuda()}).")
        narrow = PRECISIONS[target.precision].kernel_dtype == "float16" and not target.is_whole
        self._dtype, self._outputs = np.float16 if narrow else np.float32, outputs_of(bundle, target)
        self._shapes = {
            value.name: value.shape[1:] for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self._device, self._version = device, onnxruntime.__version__

    def prepare(self, batch: int, stream: int) -> None:
        """Nothing: ONNX Runtime takes its memory while it runs."""

    def forget(self, batch: int, stream: int) -> None:
        """Nothing."""

    def leave(self, stream: int) -> None:
        """Nothing."""

    def enqueue(self, batch: int, image: int, outputs: Sequence[int], stream: int) -> None:
        self._device.synchronize(stream)  # the images are there before another stream reads them
        binding = self._session.io_binding()
        binding.bind_input("image", "cuda", self._device.device_id, np.uint8, [batch, *self._shapes["image"]], image)
        for name, pointer in zip(self._outputs, outputs, strict=True):
            binding.bind_output(
                name, "cuda", self._device.device_id, self._dtype, [batch, *self._shapes[name]], pointer
            )
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its errors share no class and no code
            raise _failed(str(error), batch) from None
        binding.synchronize_outputs()

    def capturable(self, stream: int) -> bool:
        return False

    def warmed(self) -> None:
        """Nothing: ONNX Runtime compiles nothing that could be kept."""

    def describe(self) -> dict[str, str]:
        return {"library": f"onnxruntime {self._version}", "provider": "CUDAExecutionProvider"}

    def close(self) -> None:
        self._session = None


@dataclass
class Lane:
    """What an engine needs on one stream."""

    workspace: int
    contexts: dict[int, Any] = field(default_factory=dict)


class TensorRt:
    """A built engine of TensorRT-RTX or TensorRT.

    Each stream has one execution context per batch size, since a captured graph keeps pointing into its context; all
    contexts of a stream share one workspace, since they take turns.
    """

    def __init__(self, bundle: Bundle, name: str, target: Target, device: Cuda):
        self._trt = trt = BACKENDS[target.backend].load()
        path = bundle.file(target.files["engine"])
        code = path.read_bytes()
        self._log = logger(trt)
        self._device, self._tensors = device, ("image", *outputs_of(bundle, target))
        self._lanes: dict[int, Lane] = {}
        self._lock = threading.Lock()  # making contexts is not said to be thread-safe
        with device.current(), device.no_captures():
            self._runtime = trt.Runtime(self._log)
            reason = invalid_engine(self._runtime, code, self._log)
            self._engine: Any = None if reason else self._runtime.deserialize_cuda_engine(code)
            if self._engine is None:
                why = reason or self._log.first_error(of_any_thread=True)
                if _WANT_OF_MEMORY.search(why):
                    raise OutOfMemoryError(f"the GPU has too little free memory for the engine of {name}: {why}")
                raise UserError(
                    f"{path}: {trt.__name__} {trt.__version__} cannot load it ({why}). Build it again: "
                    f"{rebuild(bundle, name, device.device_id)}"
                )
            self._sides = tuple(self._engine.get_tensor_shape("image"))[1:]
            self._workspace_bytes = self._engine.device_memory_size_v2
            self._cache_path = bundle.path / CACHE / f"{name.replace(':', '-')}-{trt.__version__}.cache"
            self._cache: Any = None
            self._config = self._runtime_config()

    def prepare(self, batch: int, stream: int) -> None:
        if stream in self._lanes and batch in self._lanes[stream].contexts:
            return
        with self._device.no_captures(), self._lock:
            self._log.forget()
            if stream not in self._lanes:
                self._lanes[stream] = Lane(self._device.allocate(self._workspace_bytes))
            lane = self._lanes[stream]
            lane.contexts[batch] = self._make_context(batch, lane)

    def enqueue(self, batch: int, image: int, outputs: Sequence[int], stream: int) -> None:
        self._log.forget()
        context = self._lanes[stream].contexts[batch]
        for name, pointer in zip(self._tensors, (image, *outputs), strict=True):
            if not context.set_tensor_address(name, pointer):
                reason = self._log.first_error()
                raise RuntimeError(f"the engine does not take address {pointer:#x} for {name} ({reason})")
        if not context.execute_async_v3(stream):
            raise _failed(self._log.first_error(), batch)

    def forget(self, batch: int, stream: int) -> None:
        if stream in self._lanes:
            self._lanes[stream].contexts.pop(batch, None)

    def leave(self, stream: int) -> None:
        lane = self._lanes.pop(stream, None)
        if lane is not None:
            lane.contexts.clear()
            self._device.free(lane.workspace)

    def capturable(self, stream: int) -> bool:
        check = getattr(self._trt.IExecutionContext, "is_stream_capturable", None)
        return check is None or all(check(context, stream) for context in self._lanes[stream].contexts.values())

    def warmed(self) -> None:
        """Keep what was compiled; a bundle that cannot be written to just compiles again."""
        if self._cache is not None:
            with self._lock, contextlib.suppress(UserError), replace_file(self._cache_path) as temporary:
                temporary.write_bytes(bytes(self._cache.serialize()))

    def describe(self) -> dict[str, str]:
        return {"library": f"{self._trt.__name__} {self._trt.__version__}"}

    def close(self) -> None:
        """What was made of something goes before it: contexts, their configuration and its cache, engine, runtime."""
        for stream in tuple(self._lanes):
            self.leave(stream)
        for name in ("_config", "_cache", "_engine", "_runtime"):
            setattr(self, name, None)

    def _make_context(self, batch: int, lane: Lane) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._config or strategy)
        if context is None:
            raise OutOfMemoryError(
                f"no execution context for batch {batch} ({self._log.first_error()}): use a smaller one."
            )
        context.set_device_memory(lane.workspace, self._workspace_bytes)
        self._shape(context, batch)
        return context

    def _shape(self, context: Any, batch: int) -> None:
        if not context.set_input_shape("image", (batch, *self._sides)):
            raise UserError(f"batch {batch} is outside of the engine's profile.")

    def _runtime_config(self) -> Any:
        """TensorRT-RTX compiles for the GPU at first use and can keep the result; None for TensorRT."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # by default it first runs slower kernels, and a graph captured then would keep them for ever
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._cache_path.read_bytes())
        config.set_runtime_cache(self._cache)
        return config


def _preload() -> None:
    """Load CUDA's libraries from wheels, where they are installed so. ONNX Runtime's module prints what it does not
    find: nothing of that, and no other thread's output is touched, as it would be by another `sys.stdout`."""
    import onnxruntime

    with _preloading:
        vars(onnxruntime)["print"] = lambda *words, **options: None
        try:
            onnxruntime.preload_dlls()
        finally:
            del vars(onnxruntime)["print"]


def _not_loaded(name: str, error: Exception) -> Exception:
    """The error of ONNX Runtime that could make no session on a GPU: where its provider is there, CUDA failed."""
    reason = " ".join(str(error).split())[:300]
    if _WANT_OF_MEMORY.search(reason):
        return OutOfMemoryError(f"the GPU has too little free memory for {name}: {reason}")
    if isinstance(error, ValueError | RuntimeError):
        return UserError(f"{name}: ONNX Runtime cannot use its CUDA provider ({reason}: {LIBRARY_FAILS}).")
    return error  # of the graph


def _why_no_cuda() -> str:
    """Why ONNX Runtime runs on the CPU though CUDA was asked for, as the system's loader says it, and what to do."""
    import onnxruntime

    folder, windows = Path(onnxruntime.__file__).with_name("capi"), sys.platform == "win32"
    try:
        ctypes.CDLL(str(folder / ("onnxruntime_providers_cuda.dll" if windows else "libonnxruntime_providers_cuda.so")))
        reason = "it does not say why"
    except OSError as error:
        reason = " ".join(str(error).split())
    return f"{reason}: {BACKENDS['onnxruntime-cuda'].install}"


def _failed(message: str, batch: int) -> Exception:
    """The error of an engine that failed while running: whether for want of memory shows only in its words."""
    if _WANT_OF_MEMORY.search(message):
        return OutOfMemoryError(f"the GPU has too little free memory for batch {batch}: {' '.join(message.split())}")
    return RuntimeError(f"the engine failed ({message})")


ENCODERS: dict[str, Callable[[Bundle, str, Target, Cuda], Encoder]] = {
    "onnxruntime-cuda": OnnxRuntimeCuda,
    "tensorrt-rtx": TensorRt,
    "tensorrt": TensorRt,
}
