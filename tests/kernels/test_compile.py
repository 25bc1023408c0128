"""NVRTC makes machine code for every compute capability, fast where it matters; the cache survives damage."""

import re
import threading

import pytest
import sass

import sdpl.kernels.compile as compiler
from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.kernels.compile import CAPABILITIES, constants, cubin

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


def spills(opcodes):
    return sum(code.startswith(("LDL", "STL")) for code in opcodes)


def test_every_entry_point_uses_the_tanh_unit_and_does_not_spill(kernels, request):
    tiles = ("c1_aligned", "c2_aligned", "c4_aligned", "c1_any")
    expected = {f"{kernel}_f16_{tile}" for kernel in ("forward", "scores") for tile in tiles}
    expected |= {f"backward_{of}_f16_{rows}" for of in ("u", "vq") for rows in ("aligned", "any")}
    assert kernels.keys() == expected
    for name, lines in kernels.items():
        opcodes = [line[0] for line in lines if isinstance(line, tuple)]
        assert sass.TANH in opcodes, name
        assert spills(sass.main_loop(lines)) == 0, f"{name} spills in its main loop"
        few = 4 if "120" in request.node.name and name == "forward_f16_c1_any" else 0  # put aside once for each tile
        assert spills(opcodes) <= few, f"{name} spills"


@pytest.mark.parametrize(("tile", "limit"), [("c1_aligned", 8), ("c2_aligned", 6), ("c4_aligned", 5.2)])
def test_instructions_per_tanh_of_the_main_tiles(kernels, tile, limit):
    """Below 8 they hide behind the tanh unit; pooling of the tile before is among them."""
    for kernel in ("forward", "scores"):
        assert sass.per_tanh(kernels[f"{kernel}_f16_{tile}"]) <= limit


def test_instructions_per_tanh_of_the_backward_kernels(kernels):
    for name, lines in kernels.items():
        if name.startswith("backward"):
            assert sass.per_tanh(lines) <= 8, name


def test_a_share_of_tanh_moves_to_the_other_pipe(cache, tmp_path):
    """Two of eight: 6 cycles of the tanh unit for each tanh instead of 8, room for the rest, and nothing is spilled."""
    path = tmp_path / "polynomial.cubin"
    path.write_bytes(cubin("86", "float16", polynomial=2, cache=cache))
    lines = sass.functions(path)["forward_f16_c4_aligned"]
    loop = sass.main_loop(lines)
    values = loop.count(sass.TANH) * 8 / 6
    assert values == 7 * 8 * 4  # locations, values of K, categories
    assert len(loop) / values <= 7
    assert spills(line[0] for line in lines if isinstance(line, tuple)) == 0


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


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    """A container's home is often read-only."""
    monkeypatch.setattr(compiler, "_compile", lambda *_: b"code")
    (tmp_path / "file").write_text("")
    assert cubin("86", "float32", cache=tmp_path / "file") == b"code"


def test_constants_are_the_source_s():
    assert constants()["TILE_L"] == 7
    assert constants()["FORWARD_THREADS"] == constants()["FORWARD_WARPS"] * constants()["WARP"]
