"""Narrow graphs: their types are what they say, their arithmetic is the float32 graph's up to rounding."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from sdpl.export.graphs import encoder_runner
from sdpl.export.precision import TYPES, narrow, widen

HALF_ULP = {"fp16": 2**-11, "bf16": 2**-8}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_everything_after_the_normalisation_is_narrow(encoder, precision):
    model = narrow(encoder, precision)
    code, _ = TYPES[precision]
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {code}
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    wide = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    assert sorted(array.size for array in wide.values()) == [3, 3]  # mean and standard deviation of the pixels
    assert encoder.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT  # the argument is as it was


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_u_and_g_differ_by_rounding_only(encoder, images, precision):
    exact, rounded = encoder_runner(encoder)(images), encoder_runner(narrow(encoder, precision))(images)
    for a, b in zip(exact, rounded, strict=True):
        error = np.abs(a - b).max() / np.abs(a).max()
        assert 0.1 * HALF_ULP[precision] < error < 8 * HALF_ULP[precision]


def test_widened_arithmetic_is_the_narrow_one_s(encoder, images):
    """What replaces bfloat16, whose convolutions ONNX Runtime's CPU lacks, checked where both can run."""
    model = narrow(encoder, "fp16")
    session = onnxruntime.InferenceSession(widen(model).SerializeToString(), providers=["CPUExecutionProvider"])
    u, _ = session.run(["u", "g"], {"image": images})
    direct, _ = encoder_runner(model)(images)
    exact, _ = encoder_runner(encoder)(images)
    assert np.abs(u - direct).max() < 4 * HALF_ULP["fp16"] * np.abs(exact).max()
    assert np.abs(u - exact).max() > 0.1 * HALF_ULP["fp16"] * np.abs(exact).max()  # it does round
