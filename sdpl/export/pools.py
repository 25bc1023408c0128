"""Average pools of an encoder's graph: none that does nothing, and convolutions in their place for int8 on a CPU."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def without_idle_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without average pools of 1x1, which CLIP's ResNets have where a stage keeps its size."""
    graph = model.graph
    idle = [node for node in graph.node if _is_plain_pool(node) and _size(node) == ([1, 1], [1, 1])]
    outputs = {output.name for output in graph.output}
    for pool in idle:
        if pool.output[0] in outputs:
            continue
        for node in graph.node:
            node.input[:] = [pool.input[0] if name == pool.output[0] else name for name in node.input]
        graph.node.remove(pool)
    return model


def pools_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with each average pool as a convolution by channel, of equal weights that int8 holds exactly.

    ONNX Runtime takes much longer for quantized average pools than for quantized convolutions by channel.
    """
    model = onnx.shape_inference.infer_shapes(model)  # a copy
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    channels_of = {name: shape.dim[1].dim_value for name, shape in shapes.items() if len(shape.dim) == 4}
    del model.graph.value_info[:]
    for node in model.graph.node:
        channels = channels_of.get(node.input[0], 0) if _is_plain_pool(node) else 0
        if not channels:
            continue
        kernel, strides = _size(node)
        weight = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"{node.output[0]}.weight"))
        convolution = helper.make_node(
            "Conv",
            [node.input[0], f"{node.output[0]}.weight"],
            node.output,
            name=node.name,
            kernel_shape=kernel,
            strides=strides,
            group=channels,
        )
        node.CopyFrom(convolution)
    return model


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_plain_pool(node: onnx.NodeProto) -> bool:
    """Whether a node averages whole windows: no padding, no rounding up, no dilation."""
    if node.op_type != "AveragePool":
        return False
    found = _attributes(node)
    edges = (*found.get("pads", []), found.get("ceil_mode", 0), *(step - 1 for step in found.get("dilations", [])))
    return found.get("auto_pad", b"NOTSET") == b"NOTSET" and not any(edges)


def _size(node: onnx.NodeProto) -> tuple[list[int], list[int]]:
    """Kernel and strides."""
    found = _attributes(node)
    return found["kernel_shape"], found.get("strides", [1] * len(found["kernel_shape"]))
