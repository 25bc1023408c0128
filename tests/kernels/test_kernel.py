"""The CUDA source, run on a CPU by the emulator, against the specification; and wrong kernels, which must fail."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation import Emulated, EmulatorError, build, rounded

from sdpl.kernels.compile import source
from sdpl.kernels.reference import attention_logits, attention_pool, bilinear_attention_pool
from sdpl.kernels.tolerance import backward_deviations, departure, forward_deviations

pytestmark = pytest.mark.slow

DTYPES = ("float32", "float16", "bfloat16")
SHAPES = [  # B, L, C, K, E
    (1, 49, 80, 64, 32),
    (3, 49, 7, 1024, 24),
    (1, 1, 1, 8, 1),
    (3, 50, 20, 300, 17),
    (1, 196, 81, 8, 512),
    (2, 49, 81, 40, 600),
    (1, 1024, 3, 16, 8),
    (2, 49, 30, 1024, 512),  # several tiles for a block
    (2, 56, 9, 512, 32),  # K in two parts, two warps on each
    (1, 9, 21, 2080, 16),  # K in more than one step for each warp
    (2, 16, 9, 256, 40),  # two and four teams of warps, which go through more steps than there are locations for
    (2, 36, 9, 64, 16),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The emulator with the worst error that the tanh unit may have, by dtype."""
    folder = tmp_path_factory.mktemp("emulator")
    return {d: Emulated(build(folder, d, flags=("-DSDPL_TANH_ERROR",)), d) for d in DTYPES}


def operands(B, L, C, K, E, dtype="float32", scale=1.0, seed=0):
    """u, v, g rounded to a dtype; q and t float32; all as float64. Scores spread over a few units at scale 1."""
    rng = np.random.default_rng(seed)
    u, v, g = (rounded(rng.standard_normal(s), dtype) for s in ((B, L, K), (C, K), (B, L, E)))
    q = rounded(scale * rng.standard_normal(K) / K**0.5 * 3, "float32")
    t = rounded(10 * rng.standard_normal((C, E)) / E**0.5, "float32")
    return u, v, q, g, t


def assert_close(actual, expected, deviation):
    """Within the error that the tanh unit's makes of the result."""
    assert np.isfinite(actual).all()
    assert departure(actual.astype(np.float64), expected, deviation) is None


def assert_forward_close(emulated, arrays, polynomial=0, **options):
    logits, attention = emulated.forward(*arrays, **options)
    expected_logits, expected_attention = bilinear_attention_pool(*arrays)
    deviations = forward_deviations(*arrays, polynomial=polynomial)
    assert_close(attention, expected_attention, deviations.attention)
    assert_close(logits, expected_logits, deviations.logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(programs, dtype, shape):
    assert_forward_close(programs[dtype], operands(*shape, dtype))


@pytest.fixture(scope="module")
def with_polynomial(tmp_path_factory):
    """Two of eight tanh by the polynomial, the others with the tanh unit's worst error."""
    flags = ("-DSDPL_TANH_ERROR", "-DSDPL_POLYNOMIAL=2")
    return Emulated(build(tmp_path_factory.mktemp("polynomial"), "float16", flags=flags), "float16")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_share_of_tanh_by_polynomial(with_polynomial, programs, shape):
    """Within its own derived error; the scores of training stay with the tanh unit, to the bit."""
    u, v, q, g, t = operands(*shape, "float16")
    assert_forward_close(with_polynomial, (u, v, q, g, t), polynomial=2)
    np.testing.assert_array_equal(with_polynomial.scores(u, v, q), programs["float16"].scores(u, v, q))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_polynomial_holds_for_arguments_of_any_size(with_polynomial, scale):
    u, v, q, g, t = operands(2, 49, 9, 256, 32, "float16")
    assert_forward_close(with_polynomial, (rounded(scale * u, "float16"), v, q, g, t), polynomial=2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.500193f", "0.600193f"),  # a coefficient
        ("start -= q[x]", "start -= 0.f"),  # the constant of a value that is a polynomial at some locations only
    ],
)
def test_a_wrong_polynomial_is_caught(tmp_path, old, new):
    emulated = wrong(tmp_path, old, new, "float16", flags=("-DSDPL_POLYNOMIAL=2",))
    with pytest.raises(AssertionError, match="standard deviations"):
        assert_forward_close(emulated, operands(2, 49, 9, 1024, 32, "float16"), polynomial=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 49, 22, 64, 16), (1, 50, 7, 1024, 32)])
def test_every_tile_size_gives_the_same(programs, dtype, shape):
    arrays = operands(*shape, dtype)
    few = programs[dtype].forward(*arrays, multiprocessors=1)  # 4 categories; 4 and 3
    for multiprocessors in (2, 3, 1000):  # 4, 4, 3, ...; 3, 2, 2; one
        for one, other in zip(few, programs[dtype].forward(*arrays, multiprocessors=multiprocessors), strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(few, programs[dtype].forward(*arrays, aligned=False), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 16, 9, 256, 512), (2, 15, 9, 512, 512), (2, 50, 9, 1024, 16), (2, 15, 9, 2080, 16)]
)
def test_nothing_of_another_image_comes_into_the_results(programs, dtype, shape):
    """Not even times a weight of 0, which infinity makes NaN."""
    arrays = operands(*shape, dtype)
    expected = programs[dtype].forward(*arrays, multiprocessors=1)
    for image, other in ((0, 1), (1, 0)):
        u, v, q, g, t = (x.copy() for x in arrays)
        u[other], g[other] = np.inf, np.inf
        for result, right in zip(programs[dtype].forward(u, v, q, g, t, multiprocessors=1), expected, strict=True):
            np.testing.assert_array_equal(result[image], right[image])


def test_two_runs_give_the_same_bits(programs):
    arrays = operands(2, 49, 9, 64, 16)
    for first, second in zip(programs["float32"].forward(*arrays), programs["float32"].forward(*arrays), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 30.0, 1e6])
def test_scores_of_any_size(programs, scale):
    u, v, q, g, t = operands(2, 49, 5, 64, 16, scale=scale)
    logits, attention = programs["float32"].forward(u, v, q, g, t)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    if scale <= 1:
        assert_forward_close(programs["float32"], (u, v, q, g, t))


def test_large_arguments_of_tanh(programs):
    u, v, q, g, t = operands(1, 49, 5, 64, 16)
    assert_forward_close(programs["float32"], (1e4 * u, v, q, g, t))


def test_zero_embedding_gives_zero(programs):
    u, v, q, g, t = operands(1, 49, 5, 64, 16)
    assert (programs["float32"].forward(u, v, q, 0 * g, t)[0] == 0).all()


def tiny_embedding(emulated):
    """Embeddings shorter than eps: the largest relative difference from the reference."""
    u, v, q, g, t = operands(1, 49, 5, 64, 16, scale=0)
    g = g * 1e-7
    expected = bilinear_attention_pool(u, v, q, g, t)[0]
    return np.abs(emulated.forward(u, v, q, g, t)[0] - expected).max() / np.abs(expected).max()


def test_eps_is_a_floor(programs):
    assert tiny_embedding(programs["float32"]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 49, 7, 64), (1, 50, 81, 300), (2, 1, 1, 8), (5, 9, 6, 520)])
def test_training_scores_and_gradients(programs, dtype, shape):
    u, v, q, _, _ = operands(*shape, 1, dtype)
    ds = np.random.default_rng(1).standard_normal((shape[0], shape[2], shape[1]))
    tensors = [torch.from_numpy(a).requires_grad_() for a in (u, v, q)]
    s = attention_logits(*tensors)
    s.backward(torch.from_numpy(ds))
    empty = np.zeros((*u.shape[:2], 1)), np.zeros((len(v), 1))  # g and t
    assert_close(programs[dtype].scores(u, v, q), s.detach().numpy(), forward_deviations(u, v, q, *empty).scores)
    for aligned in (True, False):
        for result, tensor, deviation in zip(
            programs[dtype].backward(u, v, q, ds, aligned), tensors, backward_deviations(u, v, q, ds), strict=True
        ):
            assert_close(result, tensor.grad.numpy(), deviation)


def wrong(tmp_path, old, new, dtype="float32", which=0, flags=()):
    """The emulator with one occurrence of `old` in the kernel source replaced."""
    parts = source().split(old)
    assert len(parts) > which + 1, f"the source no longer has {old!r}"
    changed = old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])
    return Emulated(build(tmp_path, dtype, changed, flags), dtype)


@pytest.mark.parametrize("which", range(5))
def test_a_missing_block_barrier_is_caught(tmp_path, which):
    """Three of them are the forward kernel's, two those of the scores for training."""
    emulated = wrong(tmp_path, "__syncthreads();", "", which=which)
    u, v, q, g, t = operands(2, 49, 49, 1024, 300)
    with pytest.raises((AssertionError, EmulatorError)):
        if which < 3:
            assert_forward_close(emulated, (u, v, q, g, t))
        else:
            deviation = forward_deviations(u, v, q, g, t).scores
            assert_close(emulated.scores(u, v, q), attention_logits(u, v, q), deviation)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mine + __shfl_xor_sync(ALL_LANES, other, offset)", "mine + other"),
        ("= w;\n    __syncwarp();", "= w;"),  # lanes go on before all weights are written
    ],
)
def test_a_missing_warp_exchange_is_caught(tmp_path, old, new):
    """On the emulator the other __syncwarp, before weights are written, has the shuffles before it do its work."""
    with pytest.raises(AssertionError):
        assert_forward_close(wrong(tmp_path, old, new), operands(2, 49, 9, 64, 16))


@pytest.mark.parametrize("new", ["k + i <= K", "k + i < K - 1"])
def test_an_off_by_one_in_the_tail_of_k_is_caught(tmp_path, new):
    """One value too many lies beyond q, where only the sanitizer is sure to see it; one too few changes scores."""
    emulated = wrong(tmp_path, "k + i < K", new, flags=("-fsanitize=address",))
    with pytest.raises((AssertionError, EmulatorError)):
        assert_forward_close(emulated, operands(2, 49, 9, 300, 16))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("of_e[j] = fmaf", "if (pool.column + x < E - 1) of_e[j] = fmaf"),  # the last column of E is left out
        ("*score + total : total", "*score + total : 1.01f * total"),
    ],
)
@pytest.mark.parametrize("shape", [(2, 49, 9, 64, 300), (1, 49, 8, 1024, 512)])
def test_small_errors_are_caught(tmp_path, old, new, shape):
    """Both passed when a check allowed what the tanh unit's errors could add up to at worst."""
    with pytest.raises(AssertionError, match="standard deviations"):
        assert_forward_close(wrong(tmp_path, old, new), operands(*shape))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("*= weight[TILE_L * PAD + j]", "*= 1.f"),  # e does not shrink when a larger score comes
        ("i < TILE_L ? w : 0.f", "w"),  # what is pooled already counts twice in the sum of the weights
        ("index * TILE_L - l0, slices", "0, slices"),  # the last step counts locations of the one before again
        ("beside && index > 0 ? 0", "beside ? 0"),  # the first step pools scores that are not there yet
        ("beside ? steps_of(L) - 1 : 0;;", "0;;"),  # all steps are pooled twice
    ],
)
def test_a_wrong_softmax_is_caught(tmp_path, old, new):
    with pytest.raises(AssertionError):
        assert_forward_close(wrong(tmp_path, old, new), operands(2, 50, 5, 1024, 512))


def test_the_derived_error_is_the_one_that_happens(programs):
    """With the tanh unit at its worst, errors are as large as derived: no bound is loose."""
    arrays = operands(4, 49, 20, 256, 64)
    results = programs["float32"].forward(*arrays)
    deviations = forward_deviations(*arrays)
    for actual, expected, deviation in zip(
        results, bilinear_attention_pool(*arrays), (deviations.logits, deviations.attention), strict=True
    ):
        assert 0.75 < np.sqrt(np.mean(((actual - expected) / deviation) ** 2)) < 1.25


def test_a_wrong_eps_rule_is_caught(tmp_path):
    assert (
        tiny_embedding(wrong(tmp_path, "fmaxf(scale * sqrtf(square), in.eps)", "(scale * sqrtf(square) + in.eps)"))
        > 1e-3
    )


def test_a_wrong_gradient_is_caught(tmp_path):
    emulated = wrong(tmp_path, "fmaf(-y, y, 1.f)", "fmaf(y, y, 1.f)")
    u, v, q, _, _ = operands(2, 9, 3, 16, 1)
    ds = np.ones((2, 3, 9))
    tensors = [torch.from_numpy(a).requires_grad_() for a in (u, v, q)]
    attention_logits(*tensors).sum().backward()
    with pytest.raises(AssertionError):
        du = emulated.backward(u, v, q, ds)[0]
        assert_close(du, tensors[0].grad.numpy(), backward_deviations(u, v, q, ds)[0])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_step_outside_of_any_array(tmp_path, dtype):
    """The address sanitizer sees every array as an allocation of exactly its size."""
    emulated = Emulated(build(tmp_path, dtype, flags=("-fsanitize=address", "-g")), dtype)
    for shape in (
        (2, 50, 9, 300, 17),
        (1, 49, 9, 64, 16),
        (1, 51, 5, 1024, 600),
        (2, 16, 9, 256, 40),
        (2, 36, 9, 64, 16),
    ):
        u, v, q, g, t = operands(*shape, dtype)
        emulated.forward(u, v, q, g, t)
        emulated.scores(u, v, q)
        emulated.backward(u, v, q, np.ones((shape[0], shape[2], shape[1])))


def test_the_sanitizer_would_see_it(tmp_path):
    emulated = wrong(
        tmp_path,
        "k + i < K ? to_float(p[k + i])",
        "k + i <= K ? to_float(p[k + i])",
        "float16",
        flags=("-fsanitize=address",),
    )
    u, v, q, g, t = operands(1, 7, 1, 300, 4, "float16")
    with pytest.raises(EmulatorError, match="heap-buffer-overflow"):
        emulated.forward(u, v, q, g, t)


@pytest.mark.gpu
def test_every_kernel_on_a_gpu():
    """Forward with attention, scores and gradients on odd shapes and all dtypes, as compute-sanitizer sees them too."""
    script = Path(__file__).parents[2] / "benchmarks" / "kernel_once.py"
    subprocess.run([sys.executable, script], check=True)


def test_attention_pool_is_the_rest_of_the_operator():
    u, v, q, g, t = operands(2, 9, 3, 16, 4)
    np.testing.assert_array_equal(
        attention_pool(attention_logits(u, v, q), g, t)[0], bilinear_attention_pool(u, v, q, g, t)[0]
    )
