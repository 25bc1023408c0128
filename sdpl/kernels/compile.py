"""The CUDA source to machine code with NVRTC: no nvcc, no GPU, no driver; cached in the user's cache folder."""

import functools
import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sdpl.errors import UserError, listed
from sdpl.files import replace_file
from sdpl.install import install_line

PARTS = ("pool_1_common.cu", "pool_2_forward.cu", "pool_3_backward.cu", "pool_4_entries.cu")  # of one source
RESIZE_SOURCE = Path(__file__).with_name("resize.cu")
CAPABILITIES = ("80", "86", "89", "90", "100", "120")  # compute capabilities, major and minor together
DTYPES = {"float32": 32, "float16": 16, "bfloat16": 17}  # of u, v and g; the source's SDPL_DTYPE


def covering(capability: str, available: Iterable[str] = CAPABILITIES) -> str | None:
    """Of the compute capabilities that code is available for, the one whose cubins a GPU of `capability` runs: its
    own, or else the latest earlier minor of the same major ("86" for "87"); None when there is none."""
    fitting = [each for each in available if each[:-1] == capability[:-1] and int(each) <= int(capability)]
    return max(fitting, key=int, default=None)


@functools.cache
def source() -> str:
    """The CUDA source of the operator's kernels."""
    return "\n".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in PARTS)


@functools.cache
def constants() -> dict[str, int]:
    """The source's own tile sizes, by name: the launcher must use the very same ones."""
    return {name: int(value) for name, value in re.findall(r"^constexpr int (\w+) = (\d+);", source(), re.M)}


@functools.cache
def polynomial() -> tuple[float, tuple[float, ...]]:
    """The source's own polynomial for tanh: its range, and its coefficients from the highest power down."""
    text = source()
    body = text[text.index("half_tanh(float x)") :].split("\n}", 1)[0]
    limit = re.search(r"POLYNOMIAL_RANGE = ([\d.]+)f;", text)
    if limit is None:
        raise RuntimeError("the source has no POLYNOMIAL_RANGE")
    coefficients = re.findall(r"(?:float p = |fmaf\(p, y, )(-?[\d.]+)f", body)
    return float(limit[1]), tuple(map(float, coefficients))


def cubin(
    capability: str, dtype: str, exact_tanh: bool = False, cache: Path | None = None, polynomial: int = 0
) -> bytes:
    """Machine code of every kernel for one compute capability ("86") and dtype of u, v and g.

    exact_tanh: tanhf instead of the tanh unit, several times slower, for checking. polynomial: of every 8 tanh of the
    forward kernels, how many at most are a polynomial on the FMA pipe, beside the tanh unit (one fewer at every other
    location); see docs/kernel.md. cache: a folder for results, by default the user's. Two processes may compile at
    once: files appear whole. A damaged one is made again.
    Raises UserError for an unknown capability, when NVRTC is not installed, and when it fails, for want of memory say.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {listed(DTYPES)}, got {dtype!r}")
    definitions = [
        ("SDPL_DTYPE", str(DTYPES[dtype])),
        ("SDPL_EXACT_TANH", str(int(exact_tanh))),
        ("SDPL_POLYNOMIAL", str(polynomial)),
    ]
    return _cubin(source(), capability, definitions, cache)


def resize_cubin(capability: str, cache: Path | None = None) -> bytes:
    """As `cubin`, of the resize kernel."""
    return _cubin(RESIZE_SOURCE.read_text(encoding="utf-8"), capability, [], cache)


def _cubin(source: str, capability: str, definitions: list[tuple[str, str]], cache: Path | None) -> bytes:
    if capability not in CAPABILITIES:
        raise UserError(f"compute capability {capability}: kernels are built for {listed(CAPABILITIES, most=9)}.")
    key = hashlib.sha256(repr((source, capability, definitions, _nvrtc_version())).encode()).hexdigest()
    path = (cache or _cache_folder()) / f"{key}.cubin"
    code = _read(path)
    if code is None:
        code = _compile(source, capability, definitions)
        with suppress(UserError), replace_file(path) as temporary:  # a home that is read-only only costs time
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
    return code


def _read(path: Path) -> bytes | None:
    """The code in a cache file (a SHA-256, then the code it belongs to), or None when it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _compile(source: str, capability: str, definitions: list[tuple[str, str]]) -> bytes:
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError:
        raise UserError(f"compiling kernels needs cuda-core: {install_line('cuda')}") from None
    options = ProgramOptions(arch=f"sm_{capability}", std="c++17", define_macro=definitions or None)
    try:
        return bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # cuda-core's class is private
        version = ".".join(map(str, _nvrtc_version()[1:]))
        raise UserError(
            f"NVRTC {version} cannot compile the kernels for compute capability {capability} ({_last_line(error)}): "
            f"free some memory, or take the NVRTC that was tested: {install_line('cuda')}"
        ) from error


def _last_line(error: BaseException) -> str:
    """Of a compiler's log, what it ends with."""
    lines = [line.strip() for line in str(error).replace("\0", "").splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def require_nvrtc() -> None:
    """Raise UserError with the fix when kernels cannot be compiled here."""
    _nvrtc_version()


def _nvrtc_version() -> tuple[int, ...]:
    try:
        from cuda.bindings import nvrtc

        status, *version = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):  # cuda.pathfinder raises a RuntimeError for a library it cannot find
        raise UserError(f"compiling kernels needs NVRTC: {install_line('cuda')}") from None
    return (int(status), *version)


def _cache_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("sdpl") / "kernels"
