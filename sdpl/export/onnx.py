"""ONNX graphs of the encoder, image uint8 [B,S,S,3] -> u, g, and how a graph is made portable and saved.

PyTorch's exporter writes the encoder; `sdpl.export.head` puts the head behind it.
"""

import math
from pathlib import Path
from typing import Protocol

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sdpl.export.fold import FoldedHead
from sdpl.export.pools import without_idle_pools

OPSET = 18  # of the exporter, which writes no older one; `lowered` then says the oldest that the file needs
MAX_BYTES = (2 << 30) - (64 << 20)  # of weights in one ONNX file: protobuf holds 2 GB, and there are nodes too


class Encoder(Protocol):
    """As `FrozenClip`."""

    def locations(self, images: torch.Tensor) -> torch.Tensor:
        """f [B,L,D] from images uint8 [B,S,S,3]."""


class EncoderGraph(nn.Module):
    """What is exported of PyTorch: normalisation, trunk, map pooling, and the one folded linear layer."""

    def __init__(self, encoder: Encoder, head: FoldedHead):
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(*head.weight.shape)
        self.linear.weight.data, self.linear.bias.data = head.weight.T.contiguous(), head.bias
        self.joint_dim = head.joint_dim

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ug = self.linear(self.encoder.locations(image))  # [B,L,K+E]
        return ug[..., : self.joint_dim], ug[..., self.joint_dim :]  # u [B,L,K], g [B,L,E]


def encoder_to_onnx(encoder: Encoder, head: FoldedHead, image: torch.Tensor) -> onnx.ModelProto:
    """The encoder as an ONNX model with input `image` and outputs `u`, `g`; float32, dynamic batch.

    encoder: has `locations`, as `FrozenClip`. image: an example of its input with a batch of 2.
    """
    program = torch.onnx.export(
        EncoderGraph(encoder, head).eval(),
        (image,),
        dynamo=True,
        input_names=["image"],
        output_names=["u", "g"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export made no program")
    return without_idle_pools(_with_plain_gelu(_without_traces(program.model_proto)))


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the oldest opset and IR version that mean the same: each operator says since when it is what
    it is at the graph's own opset. Older tools then read the file."""
    own = {entry.domain: entry.version for entry in model.opset_import}[""]
    since = (onnx.defs.get_schema(node.op_type, own, "").since_version for node in model.graph.node)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", max(since)))
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    return model


def set_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    """The same graph with these metadata_props and no others."""
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    return model


def save(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Check and write a model; names of its files by role: "model", and "weights" if it is too large for one file."""
    if _weights_bytes(model) <= MAX_BYTES:
        onnx.save(model, path)
        files = {"model": path.name}
    else:
        weights = f"{path.name}.data"
        onnx.save(model, path, save_as_external_data=True, location=weights, size_threshold=1024)
        files = {"model": path.name, "weights": weights}
    onnx.checker.check_model(str(path))
    return files


def _weights_bytes(model: onnx.ModelProto) -> int:
    """Size of a model's constants; protobuf itself cannot say it of what is too large for it."""
    return sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: its stack traces name files of the exporting machine."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


def _with_plain_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each GELU as (x * 0.5) * (1 + erf), not x * (0.5 * (1 + erf)), which crashes OpenCV 5.0. Scaling by a power of 2
    is exact: the values stay the same."""
    graph = model.graph
    producer = {output: node for node in graph.node for output in node.output}
    halves = {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT and _is_half(i)}
    readers = [name for node in graph.node for name in node.input]
    for node in graph.node:
        for x, scaled in (node.input, node.input[::-1]) if node.op_type == "Mul" else ():
            inner = producer.get(scaled)
            if inner is None or inner.op_type != "Mul" or readers.count(scaled) != 1:
                continue
            half, gate = sorted(inner.input, key=lambda name: name not in halves)
            if half in halves and gate in producer and _is_gate(producer[gate], producer):
                inner.input[:], node.input[:] = [x, half], [scaled, gate]
                break
    return model


def _is_half(tensor: TensorProto) -> bool:
    return list(tensor.dims) in ([], [1]) and numpy_helper.to_array(tensor).item() == 0.5


def _is_gate(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> bool:
    """Whether a node is 1 + erf(...)."""
    return node.op_type == "Add" and any(name in producer and producer[name].op_type == "Erf" for name in node.input)
