"""NVRTC makes machine code for every compute capability, fast where it matters; the cache survives damage."""

import re
import subprocess
import sys
import threading

import pytest
import sass

import sdpl.kernels.compile as compiler
from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.kernels.compile import CAPABILITIES, constants, covering, cubin

pytestmark = pytest.mark.slow

pytest.importorskip("cuda.core", reason="needs the extra cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module", params=CAPABILITIES)
def kernels(request, cache, tmp_path_factory):
    """The machine code of the float16 kernels, by entry point."""
    path = tmp_path_factory.mktemp("cubin") / "k.cubin"
    path.write_bytes(cubin(request.param, "float16", cache=cache))
    return sass.functions(path)


SPILLS = {  # by capability, kernel and values by polynomial: what NVRTC 13.0 has outside of loops; none anywhere else
    ("90", "backward_vq_f32_aligned", 0): 2,
    ("90", "backward_vq_f32_aligned", 2): 2,  # the same code
    ("90", "forward_bf16_aligned", 2): 4,
}


def assert_no_spills(capability, kernels, polynomial=0):
    for name, lines in kernels.items():
        in_loops = sum(spills(loop.own) for loop in sass.loops(lines) if sass.TANH in loop.own)
        assert in_loops == 0, f"{capability} {name} spills in its loop"
        found = spills(line[0] for line in lines if isinstance(line, tuple))
        assert found <= SPILLS.get((capability, name, polynomial), 0), f"{capability} {name} spills"


def spills(opcodes):
    return sum(code.startswith(("LDL", "STL")) for code in opcodes)


def test_every_entry_point_uses_the_tanh_unit(kernels):
    of = ("forward", "scores", "backward_u", "backward_vq")
    expected = {f"{kernel}_f16_{rows}" for kernel in of for rows in ("aligned", "any")}
    assert kernels.keys() == expected
    for name, lines in kernels.items():
        assert sass.TANH in [line[0] for line in lines if isinstance(line, tuple)], name


def test_float16_does_not_spill(request, kernels):
    assert_no_spills(request.node.callspec.params["kernels"], kernels)


@pytest.mark.parametrize("capability", ["86", "90"])
@pytest.mark.parametrize(
    ("dtype", "polynomial"), [("float32", 0), ("float32", 2), ("bfloat16", 0), ("bfloat16", 2), ("float16", 2)]
)
def test_the_others_do_not_spill(cache, tmp_path, capability, dtype, polynomial):
    path = tmp_path / "k.cubin"
    path.write_bytes(cubin(capability, dtype, cache=cache, polynomial=polynomial))
    assert_no_spills(capability, sass.functions(path), polynomial)


def main_loops(lines, polynomial=0):
    """The opcodes of the loop around the tanh unit, by categories of a tile."""
    own = [loop.own for loop in sass.loops(lines)]
    by_unit = 7 * 8 - sum(polynomial - (polynomial > 0 and i % 2 == 0) for i in range(7))  # a category, lane and step
    found = {loop.count(sass.TANH) // by_unit: loop for loop in own if sass.TANH in loop}
    assert sorted(found) == [1, 2, 3, 4]
    return found


@pytest.mark.parametrize(("kernel", "most"), [("forward", (9, 7, 6, 5.5)), ("scores", (6.5, 5, 4.6, 4.25))])
def test_instructions_per_tanh_of_tiles_of_every_size(kernels, kernel, most):
    """Below 8 they hide behind the tanh unit. "forward", with softmax and pooling in the same loop, takes more than 8
    where a tile has one category."""
    for tc, loop in main_loops(kernels[f"{kernel}_f16_aligned"]).items():
        assert len(loop) / loop.count(sass.TANH) <= most[tc - 1]


def test_instructions_per_tanh_of_the_backward_kernels(kernels):
    for name, lines in kernels.items():
        if name.startswith("backward"):
            assert sass.per_tanh(lines) <= 8, name


def test_a_share_of_tanh_moves_to_the_other_pipe(cache, tmp_path):
    """At most two of eight: both pipes are busy for less than 6.7 cycles a tanh, instead of 8 of the tanh unit."""
    path = tmp_path / "polynomial.cubin"
    path.write_bytes(cubin("86", "float16", polynomial=2, cache=cache))
    lines = sass.functions(path)["forward_f16_aligned"]
    loop = main_loops(lines, 2)[4]
    assert loop.count(sass.TANH) == 4 * (7 * 8 - 10)  # 2 at three locations of a step, 1 at four
    assert len(loop) / (4 * 7 * 8) <= 6.7
    assert 8 * loop.count(sass.TANH) / (4 * 7 * 8) <= 6.6


def test_exact_tanh_is_another_program(cache, tmp_path):
    path = tmp_path / "exact.cubin"
    path.write_bytes(cubin("86", "float32", exact_tanh=True, cache=cache))
    opcodes = {line[0] for lines in sass.functions(path).values() for line in lines if isinstance(line, tuple)}
    assert sass.TANH not in opcodes


def test_a_damaged_cache_file_is_made_again(tmp_path):
    code = cubin("86", "bfloat16", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    for damage in (b"", path.read_bytes()[:-1], path.read_bytes()[:40] + b"x" + path.read_bytes()[41:]):
        path.write_bytes(damage)
        assert cubin("86", "bfloat16", cache=tmp_path) == code


def test_the_cache_is_used(tmp_path, monkeypatch):
    code = cubin("86", "bfloat16", cache=tmp_path)
    monkeypatch.setattr(compiler, "_compile", None)
    assert cubin("86", "bfloat16", cache=tmp_path) == code


def test_two_at_once(tmp_path, monkeypatch):
    started = threading.Barrier(2)

    def slow(*_):
        started.wait(timeout=10)
        return b"code"

    monkeypatch.setattr(compiler, "_compile", slow)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cubin("86", "float32", cache=tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"code", b"code"]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_compiled_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="compute capability 70: kernels are built for 80, 86, 89, 90, 100, 120"):
        cubin("70", "float32", cache=tmp_path)
    with pytest.raises(ValueError, match="expected one of float32, float16, bfloat16, got 'int8'"):
        cubin("86", "int8", cache=tmp_path)
    import cuda.bindings.nvrtc as nvrtc

    def missing():
        raise RuntimeError("libnvrtc not found")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    with pytest.raises(UserError, match="needs NVRTC: " + re.escape(install_line("cuda"))):
        cubin("86", "float32", cache=tmp_path)


COMPILE_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from cuda.core import Program, ProgramOptions
from sdpl.errors import UserError
from sdpl.kernels.compile import cubin

Program("", "c++", ProgramOptions(arch="sm_86")).compile("cubin")  # loads the compiler
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (held + (int(sys.argv[2]) << 20), limit[1]))
try:
    print(len(cubin("86", "float16", cache=Path(sys.argv[1]))))
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, limit)
print(len(cubin("86", "float16", cache=Path(sys.argv[1]))) > 10_000)
"""


def test_a_compiler_without_memory_says_so_and_works_again(tmp_path):
    """In a process of its own: with a few MB more the compiler's second part aborts it, which nobody can prevent."""
    command = [sys.executable, "-c", COMPILE_WITH_LITTLE_MEMORY, tmp_path, "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    said, works = result.stdout.splitlines()
    assert re.match(
        r"NVRTC 13\.\d+ cannot compile the kernels for compute capability 86 \(.+\): free some memory", said
    )
    assert works == "True"


def test_without_cuda_core_the_install_line_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(UserError, match="compiling kernels needs cuda-core: " + re.escape(install_line("cuda"))):
        cubin("86", "float32", cache=tmp_path)


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    """A container's home is often read-only."""
    monkeypatch.setattr(compiler, "_compile", lambda *_: b"code")
    (tmp_path / "file").write_text("")
    assert cubin("86", "float32", cache=tmp_path / "file") == b"code"


def test_constants_are_the_source_s():
    assert constants()["TILE_L"] == 7
    assert constants()["FORWARD_THREADS"] == constants()["FORWARD_WARPS"] * constants()["WARP"]


@pytest.mark.parametrize(
    ("gpu", "code"),
    [
        ("80", "80"),
        ("86", "86"),
        ("87", "86"),
        ("90", "90"),
        ("103", "100"),
        ("121", "120"),
        ("75", None),
        ("110", None),
    ],
)
def test_a_gpu_runs_code_of_its_own_or_an_earlier_minor(gpu, code):
    assert covering(gpu) == code
