"""Whole models on OpenVINO's CPU plugin: x86 of any maker, and Arm. Imported only when a target needs it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.manifest import CACHE, Target
from sdpl.runtime.cpu import Cores, CpuModel, model_path, require_shapes
from sdpl.runtime.machine import fingerprint
from sdpl.targets import BACKENDS

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # the type of what the graph leaves in float; else it picks one


class OpenVinoCpu(CpuModel):
    """A whole model on OpenVINO. One request for each stream; images are read where they lie."""

    def __init__(self, bundle: Bundle, target: Target, cores: Cores):
        openvino = BACKENDS["openvino"].load()
        about = {"backend": "openvino", "library": f"openvino {openvino.__version__.split('-')[0]}", "provider": "CPU"}
        super().__init__(bundle, target, cores, about)

    def load(self, bundle: Bundle, target: Target, cores: Cores) -> "Requests":
        openvino = BACKENDS["openvino"].load()
        self._tensor = openvino.Tensor
        path = model_path(bundle, target)
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[target.precision],
            "INFERENCE_NUM_THREADS": cores.threads,
            "NUM_STREAMS": cores.streams,
            "PERFORMANCE_HINT": "LATENCY" if cores.streams == 1 else "THROUGHPUT",
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
        }
        folder = cache_folder(bundle)
        if folder is not None:
            config["CACHE_DIR"] = str(folder)
        try:
            model = openvino.Core().compile_model(path, "CPU", config)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot load it ({_first_reason(str(error))}).") from None
        ports = (model.input("image"), model.output("scores"), model.output("attention"))
        require_shapes(bundle, path, *(_shape(port) for port in ports))
        return Requests(model, cores.streams)

    def infer(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        if not images.flags.writeable:  # OpenVINO takes no address of what may not be written
            images = images.copy()
        engine: Requests = self._engine
        with engine.one() as request:
            request.set_input_tensor(self._tensor(images, shared_memory=True))
            request.infer()
            return [request.get_tensor(name).data.copy() for name in outputs]


class Requests:
    """A compiled model with a request for each stream."""

    def __init__(self, model: Any, streams: int):
        self.model = model
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._free.put(model.create_infer_request())

    @contextmanager
    def one(self) -> Iterator[Any]:
        """A free request; waits while there is none."""
        request = self._free.get()
        try:
            yield request
        finally:
            self._free.put(request)


def cache_folder(bundle: Bundle) -> Path | None:
    """Where OpenVINO keeps what it compiled, for this machine and these versions; None where it cannot write."""
    folder = bundle.path / CACHE / f"openvino-{fingerprint()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _shape(port: Any) -> list[int | None]:
    """A port's dimensions; None for one that is not fixed."""
    return [dim.get_length() if dim.is_static else None for dim in port.partial_shape]


def _first_reason(text: str) -> str:
    """The sentence of OpenVINO's message that says something: not the lines that name its own source files."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return next(iter([*telling, *lines]), "no reason given")
