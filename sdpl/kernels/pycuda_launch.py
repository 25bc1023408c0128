"""The kernels from PyCUDA: the same cubins, plans and checks; only the driver's binding differs.

    import pycuda.autoprimaryctx
    kernels = PyCudaKernels("float16")
    kernels.forward(u, v, q, g, t, logits, stream=stream)   # GPUArrays; a pycuda.driver.Stream or None

PyCUDA has no wheel and does not build without a CUDA driver, so it is an extra of its own, `pycuda`.
"""

from typing import Any

import numpy as np

from sdpl.kernels.compile import cubin
from sdpl.kernels.driver import require_here
from sdpl.kernels.launch import Kernels, supported, unloadable
from sdpl.kernels.plan import Launch


class PyCudaKernels(Kernels):
    """As `Kernels`, in PyCUDA's current context (`device_id` is not looked at)."""

    def _load(self, code: bytes | None, device_id: int) -> tuple[int, Any]:
        from pycuda import driver

        device = driver.Context.get_device()
        capability = "{}{}".format(*device.compute_capability())
        multiprocessors = device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
        code = code or cubin(supported(capability), self.dtype)
        try:
            return multiprocessors, driver.module_from_buffer(code)
        except driver.Error as error:
            raise unloadable(capability, error) from None

    def close(self) -> None:
        """PyCUDA unloads the code once nothing refers to it."""
        self._module = None
        self._functions.clear()

    def _require_here(self, pointer: int, name: str) -> None:
        require_here(pointer, name)

    def _function(self, entry: str) -> Any:
        return self._module.get_function(entry)

    def _enqueue(self, function: Any, plan: Launch, stream: Any, arguments: tuple[int | np.generic, ...]) -> None:
        values = [np.uintp(value) if isinstance(value, int) else value for value in arguments]  # addresses
        function(*values, block=(plan.block, 1, 1), grid=plan.grid, shared=plan.shared_bytes, stream=stream)
