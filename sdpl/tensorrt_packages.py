"""What export and runtime both need to know of the two TensorRT packages, whose Python API is one."""

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by backend
INSTALL = {"tensorrt-rtx": 'pip install "sdpl[rtx]"', "tensorrt": 'pip install "sdpl[tensorrt]"'}
RTX_CAPABILITIES = ("86", "80", "89", "120")  # for which TensorRT-RTX engines and kernels are built ahead of time


def logger(trt):
    """A logger for either package that says nothing and keeps the first error, as `first_error`."""

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.first_error = "no reason given"

        def log(self, severity, message):
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and self.first_error == "no reason given":
                self.first_error = " ".join(message.split())

    return Log()
