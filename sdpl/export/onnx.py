"""The ONNX graph: image uint8 [B,S,S,3] -> scores [B,C] and attention [B,C,L].

PyTorch's exporter writes the encoder, image -> u, g. The head is one node, `sdpl::BilinearAttentionPool`,
whose meaning travels with it as a model-local function of standard operators.
"""

from typing import Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sdpl.export.fold import FoldedHead
from sdpl.kernels import EPS

OPSET = 18  # the oldest whose Scan, Split and reductions this graph uses; every current engine reads it
DOMAIN = "sdpl"
OPERATOR = "BilinearAttentionPool"

# The operator in ONNX's text format, in two parts: scores, then pooling. Scan takes one category at a time, so that
# B*C*L*K values never exist at once; each step is Mul -> Tanh -> MatMul, which every engine knows.
EXACT_SCORES = """
    q_column = Unsqueeze (q, one)
    scores_cbl1 = Scan <num_scan_inputs = 1, body = one_category (float[K] v_c) => (float[B, L, I] s_c) {
        joint = Mul (u, v_c)
        joint_tanh = Tanh (joint)
        s_c = MatMul (joint_tanh, q_column)
    }> (v)
    scores_cbl = Squeeze (scores_cbl1, last)
    scores = Transpose <perm = [1, 0, 2]> (scores_cbl)"""
# The separable form (export/separable.py): nodes x [K,R], weight [K*R,C]. No loop, one matrix product.
SEPARABLE_SCORES = """
    u_column = Unsqueeze (u, last)
    scaled = Mul (u_column, x)
    terms = Tanh (scaled)
    rows_shape = Constant <value = int64[3] {0, 0, -1}> ()
    rows = Reshape (terms, rows_shape)
    scores_blc = MatMul (rows, weight)
    scores = Transpose <perm = [0, 2, 1]> (scores_blc)"""
POOL = f"""
    eps = Constant <value = float {{{EPS}}}> ()
    attention = Softmax <axis = -1> (scores)
    e = MatMul (attention, g)
    weighted = Mul (e, t)
    dot = ReduceSum <keepdims = 0> (weighted, last)
    norm = ReduceL2 <keepdims = 0> (e, last)
    floored = Max (norm, eps)
    logits = Div (dot, floored)
"""
HEADS = {"exact": (("v", "q"), EXACT_SCORES), "separable": (("x", "weight"), SEPARABLE_SCORES)}


def function(kind: str = "exact") -> str:
    """The operator's body as a model-local function, for the exact head or the separable one."""
    constants, scores = HEADS[kind]
    first, second = constants
    return f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{OPERATOR} (u, {first}, {second}, g, t) => (logits, attention)
{{
    one = Constant <value = int64[1] {{1}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
{scores}
{POOL}
}}
"""


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
    return _without_traces(program.model_proto)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: its stack traces name files of the exporting machine."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


def add_head(
    model: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str, kind: str = "exact"
) -> onnx.ModelProto:
    """The same graph with the operator node after `u` and `g`, and outputs `scores` and `attention`.

    constants: of that kind of head (`HEADS`), and t [C,E].
    """
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(array, f"head.{n}") for n, array in constants.items())
    first, second = HEADS[kind][0]
    inputs = ["u", f"head.{first}", f"head.{second}", "g", "head.t"]
    graph.node.append(helper.make_node(OPERATOR, inputs, ["logits", "attention"], name="head", domain=DOMAIN))
    last = helper.make_node("Sigmoid", ["logits"], ["scores"], name="scores")
    if probability == "softmax":
        last = helper.make_node("Softmax", ["logits"], ["scores"], name="scores", axis=-1)
    graph.node.append(last)
    batch, locations = (dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim[:2])
    categories = len(constants["t"])
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, categories]),
            helper.make_tensor_value_info("attention", TensorProto.FLOAT, [batch, categories, locations]),
        ]
    )
    model.functions.append(onnx.parser.parse_function(function(kind)))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.checker.check_model(model)
    return model
