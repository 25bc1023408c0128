"""An encoder's graph in float16 or bfloat16. Engines are strongly typed: the precision must be in the graph.

Made from the float32 graph, whose batch normalisation is already folded into its convolutions, so that no
weight is rounded twice. Pixels are normalised in float32 first: 255 steps need more than bfloat16's 8 bits.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BF16_OPSET = 22  # the first in which convolutions take bfloat16
TYPES = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
NORMALISATION = ("Cast", "Transpose", "Sub", "Div", "Mul")  # the operators between the image and the trunk


def narrow(encoder: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The float32 encoder (image -> u, g) with weights, activations and outputs in a narrow type."""
    code, dtype = TYPES[precision]
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    if precision == "bf16":
        model = onnx.version_converter.convert_version(model, BF16_OPSET)
    graph = model.graph
    kept, normalised = _normalisation(graph)
    trunk = [node for node in graph.node if node.name not in kept]
    for node in trunk:
        node.input[:] = ["normalised" if name == normalised else name for name in node.input]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = code
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_narrowed(attribute.t, dtype))
    used = {name for node in trunk for name in node.input}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name in used:
            tensor.CopyFrom(_narrowed(tensor, dtype))
    for output in graph.output:
        output.type.tensor_type.elem_type = code
    at = 1 + next(i for i, node in enumerate(graph.node) if normalised in node.output)
    graph.node.insert(at, helper.make_node("Cast", [normalised], ["normalised"], name="normalised", to=code))
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def widen(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """A narrow encoder computed in float32 with every tensor rounded to the narrow type, as tensor cores compute.

    For engines that lack operators in that type, as ONNX Runtime's CPU provider lacks convolutions in bfloat16.
    """
    model = onnx.shape_inference.infer_shapes(encoder)
    graph = model.graph
    code = graph.output[0].type.tensor_type.elem_type
    known = (*graph.value_info, *graph.output)
    narrow_names = {value.name for value in known if value.type.tensor_type.elem_type == code}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in narrow_names:
                node.output[i] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=code))
                nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        if tensor.data_type == code:
            tensor.CopyFrom(_narrowed(tensor, np.dtype(np.float32)))
    for output in graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _normalisation(graph: onnx.GraphProto) -> tuple[set[str], str]:
    """Names of the nodes that turn the image into normalised pixels, and of the tensor that they make."""
    kept: set[str] = set()
    tensor = graph.input[0].name
    while True:
        consumers = [node for node in graph.node if tensor in node.input and node.op_type != "Shape"]
        if len(consumers) != 1 or consumers[0].op_type not in NORMALISATION:
            return kept, tensor
        kept.add(consumers[0].name)
        tensor = consumers[0].output[0]


def _narrowed(tensor: TensorProto, dtype: np.dtype) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name)
