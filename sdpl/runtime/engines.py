"""Engines for the first stage on a GPU: ONNX Runtime's CUDA provider, TensorRT-RTX and TensorRT."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.bundle import CACHE, Bundle, Target
from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.runtime.availability import invalid_engine, logger, rebuild
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.two_stage import Encoder
from sdpl.targets import BACKENDS, PRECISIONS

TENSORS = ("image", "u", "g")


class OnnxRuntimeCuda:
    """An encoder graph on ONNX Runtime's CUDA provider, with its inputs and outputs bound to our memory.

    It runs on a stream of its own choosing and waits for it, so it is not captured.
    """

    def __init__(self, bundle: Bundle, name: str, target: Target, device: Cuda):
        import onnxruntime

        path = bundle.file(target.files["encoder"])
        onnxruntime.preload_dlls()  # CUDA's libraries from wheels, where they are installed so
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CUDAExecutionProvider"])
        if "CUDAExecutionProvider" not in self._session.get_providers():  # it falls back to the CPU without a word
            raise UserError(
                f"{name}: ONNX Runtime cannot load its CUDA provider: {BACKENDS['onnxruntime-cuda'].install}."
            )
        self._dtype = {"float32": np.float32, "float16": np.float16}[PRECISIONS[target.precision].kernel_dtype]
        self._shapes = {
            value.name: value.shape[1:] for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self._device, self._version = device, onnxruntime.__version__

    def prepare(self, batch: int) -> None:
        """Nothing: ONNX Runtime takes its memory while it runs."""

    def forget(self, batch: int) -> None:
        """Nothing."""

    def enqueue(self, batch: int, image: int, u: int, g: int, stream: int) -> None:
        self._device.synchronize(stream)  # the images are there before another stream reads them
        binding = self._session.io_binding()
        binding.bind_input("image", "cuda", 0, np.uint8, [batch, *self._shapes["image"]], image)
        for name, pointer in (("u", u), ("g", g)):
            binding.bind_output(name, "cuda", 0, self._dtype, [batch, *self._shapes[name]], pointer)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its errors share no class and no code
            raise _failed(str(error), batch) from None
        binding.synchronize_outputs()

    def capturable(self, stream: int) -> bool:
        return False

    def describe(self) -> dict[str, str]:
        return {"library": f"onnxruntime {self._version}", "provider": "CUDAExecutionProvider"}

    def close(self) -> None:
        self._session = None


class TensorRt:
    """A built engine of TensorRT-RTX or TensorRT. One execution context per batch size, since a captured graph keeps
    pointing into its context; all contexts share one workspace, since calls take turns."""

    def __init__(self, bundle: Bundle, name: str, target: Target, device: Cuda):
        self._trt = trt = importlib.import_module(BACKENDS[target.backend].package)
        path = bundle.file(target.files["engine"])
        code = path.read_bytes()
        self._log = logger(trt)
        self._runtime = trt.Runtime(self._log)
        reason = invalid_engine(self._runtime, code)
        engine = None if reason else self._runtime.deserialize_cuda_engine(code)
        if engine is None:
            raise UserError(
                f"{path}: {trt.__name__} {trt.__version__} cannot load it "
                f"({reason or self._log.first_error}). Build it again: {rebuild(bundle, name)}"
            )
        self._engine, self._device = engine, device
        self._sides = tuple(engine.get_tensor_shape("image"))[1:]
        self._contexts: dict[int, Any] = {}
        self._any: Any = None
        self._config = self._runtime_config(bundle.path / CACHE / f"{name.replace(':', '-')}-{trt.__version__}.cache")
        self._workspace_bytes = engine.device_memory_size_v2
        self._workspace = device.allocate(self._workspace_bytes)

    def prepare(self, batch: int) -> None:
        if batch not in self._contexts:
            self._contexts[batch] = self._make_context(batch)

    def enqueue(self, batch: int, image: int, u: int, g: int, stream: int) -> None:
        context = self._contexts.get(batch)
        if context is None:  # images already on the GPU come in any number; no graph points into this context
            self._any = self._any or self._make_context(batch)
            self._shape(self._any, batch)
            context = self._any
        for name, pointer in zip(TENSORS, (image, u, g), strict=True):
            context.set_tensor_address(name, pointer)
        if not context.execute_async_v3(stream):
            raise _failed(self._log.first_error, batch)

    def forget(self, batch: int) -> None:
        self._contexts.pop(batch, None)

    def capturable(self, stream: int) -> bool:
        check = getattr(self._trt.IExecutionContext, "is_stream_capturable", None)
        return check is None or all(check(context, stream) for context in self._contexts.values())

    def describe(self) -> dict[str, str]:
        return {"library": f"{self._trt.__name__} {self._trt.__version__}"}

    def close(self) -> None:
        if self._engine is None:
            return
        self._save_cache()
        self._contexts.clear()
        self._any = None
        self._engine = self._runtime = self._config = None
        self._device.free(self._workspace)

    def _make_context(self, batch: int) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._config or strategy)
        if context is None:
            raise OutOfMemoryError(
                f"no execution context for batch {batch} ({self._log.first_error}): use a smaller one."
            )
        context.set_device_memory(self._workspace, self._workspace_bytes)
        self._shape(context, batch)
        return context

    def _shape(self, context: Any, batch: int) -> None:
        if not context.set_input_shape("image", (batch, *self._sides)):
            raise UserError(f"batch {batch} is outside of the engine's profile.")

    def _runtime_config(self, cache: Path) -> Any:
        """TensorRT-RTX compiles for the GPU at first use and can keep the result; None for TensorRT."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # by default it first runs slower kernels, and a graph captured then would keep them for ever
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache, self._cache_path = config.create_runtime_cache(), cache
        with contextlib.suppress(OSError):
            self._cache.deserialize(cache.read_bytes())
        config.set_runtime_cache(self._cache)
        return config

    def _save_cache(self) -> None:
        """Keep what was compiled; a bundle that cannot be written to just compiles again."""
        if self._config is not None:
            with contextlib.suppress(UserError), replace_file(self._cache_path) as temporary:
                temporary.write_bytes(bytes(self._cache.serialize()))


def _failed(message: str, batch: int) -> Exception:
    """The error of an engine that failed while running: whether for want of memory shows only in its words."""
    if "memory" in message.lower():
        return OutOfMemoryError(f"the GPU has too little free memory for batch {batch}: {' '.join(message.split())}")
    return RuntimeError(f"the engine failed ({message})")


ENCODERS: dict[str, Callable[[Bundle, str, Target, Cuda], Encoder]] = {
    "onnxruntime-cuda": OnnxRuntimeCuda,
    "tensorrt-rtx": TensorRt,
    "tensorrt": TensorRt,
}
