"""The head as standard ONNX nodes: bilinear attention pooling (`sdpl.kernels.reference`) for any engine.

No function, no loop, no plugin: what an engine needs is Mul, Tanh, MatMul, Softmax and the like. Categories go through
in blocks, each with constants of its own, so that B*C*L*K values never exist at once: a block's tanh takes
`BLOCK_VALUES` floats an image (3.2 MB), and its embeddings `POOL` rows.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdpl.kernels import EPS

BLOCK_VALUES = 16 * 49 * 1024  # of tanh(u v) at once, for an image: 16 categories of CLIP RN101 at 448 pixels
POOL = 256  # categories pooled at once
KINDS = {"exact": ("v", "q"), "separable": ("x", "weight")}  # the constants of each kind of head, beside t


class Nodes:
    """Nodes and constants appended to a graph, with names of their own."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.last = self.constant("axis.last", np.array([-1], np.int64))

    def constant(self, name: str, array: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"head.{name}"))
        return f"head.{name}"

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = f"head.{op}.{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(op, inputs, [output or name], name=name, **attributes))
        return output or name

    def cast(self, name: str, to: int) -> str:
        return self.add("Cast", [name], to=to)

    def cosine(self, e: str, t: str, eps: str) -> str:
        """<e, t> / max(|e|, eps), [B,c], from e [B,c,E] and t [c,E]."""
        dot = self.add("ReduceSum", [self.add("Mul", [e, t]), self.last], keepdims=0)
        return self.add("Div", [dot, self.length(e, eps)])

    def length(self, e: str, eps: str, keepdims: int = 0) -> str:
        """max(|e|, eps) over the last axis."""
        square = self.add("ReduceSum", [self.add("Mul", [e, e]), self.last], keepdims=keepdims)
        return self.add("Max", [self.add("Sqrt", [square]), eps])


def add_head(
    model: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str, kind: str = "exact"
) -> onnx.ModelProto:
    """The same graph with the head after `u` [B,L,K] and `g` [B,L,E]: outputs `scores` [B,C], `attention` [B,C,L] and
    `embedding` [B,E], the image's own (`sdpl.kernels.reference.mean_embedding`).

    constants: of that kind of head (`KINDS`), and t [C,E]; float32. A separable head after u and g in float16 has its
    matrix products in float16, for tensor cores; softmax and cosine are float32.
    """
    graph, nodes = model.graph, Nodes(model.graph)
    is_narrow = graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    locations = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    t, eps = constants["t"], nodes.constant("eps", np.array(EPS, np.float32))
    score = _exact(nodes, constants, locations) if kind == "exact" else _separable(nodes, constants, is_narrow)
    logits, attentions = [], []
    for start in range(0, len(t), POOL):
        block = slice(start, min(start + POOL, len(t)))
        attentions.append(nodes.add("Softmax", [score(block)], axis=-1))  # [B,POOL,L]
        weights = nodes.cast(attentions[-1], TensorProto.FLOAT16) if is_narrow else attentions[-1]
        e = nodes.add("MatMul", [weights, "g"])  # [B,POOL,E]
        e = nodes.cast(e, TensorProto.FLOAT) if is_narrow else e
        logits.append(nodes.cosine(e, nodes.constant(f"t.{start}", t[block]), eps))  # [B,POOL]
    _embedding(nodes, eps, locations, is_narrow)
    return finish(model, nodes, logits, attentions, probability, *t.shape)


def finish(
    model: onnx.ModelProto,
    nodes: Nodes,
    logits: list[str],
    attentions: list[str],
    probability: str,
    categories: int,
    embedding: int | None = None,
) -> onnx.ModelProto:
    """The graph with outputs `scores` and `attention` from the logits and attention of blocks of categories, and with
    the `embedding` of that size, where it has one."""
    graph = model.graph
    batch, locations = (dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim[:2])
    nodes.add("Concat", logits, "logits", axis=1)
    nodes.add("Concat", attentions, "attention", axis=1)
    if probability == "softmax":
        nodes.add("Softmax", ["logits"], "scores", axis=-1)
    else:
        nodes.add("Sigmoid", ["logits"], "scores")
    del graph.output[:]
    shapes = {"scores": [batch, categories], "attention": [batch, categories, locations]}
    if embedding is not None:
        shapes["embedding"] = [batch, embedding]
    graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items())
    return model


def _embedding(nodes: Nodes, eps: str, locations: int, is_narrow: bool) -> None:
    """`embedding` [B,E]: the mean of g over the locations, at unit length."""
    g = nodes.cast("g", TensorProto.FLOAT) if is_narrow else "g"
    summed = nodes.add("ReduceSum", [g, nodes.constant("axis.l", np.array([1], np.int64))], keepdims=0)
    e = nodes.add("Mul", [summed, nodes.constant("share", np.array(1 / locations, np.float32))])
    nodes.add("Div", [e, nodes.length(e, eps, keepdims=1)], "embedding")


def _exact(nodes: Nodes, constants: dict[str, np.ndarray], locations: int) -> Any:
    """Attention logits by the definition: sum_k q_k tanh(u_lk v_ck)."""
    v, q = constants["v"], constants["q"]
    size = max(1, BLOCK_VALUES // (locations * v.shape[1]))
    column = nodes.constant("q", q[:, None])  # [K,1]
    u = nodes.add("Unsqueeze", ["u", nodes.constant("axis.categories", np.array([1], np.int64))])  # [B,1,L,K]

    def score(block: slice) -> str:
        """s [B,POOL,L] of a slice of categories."""
        parts = []
        for start in range(block.start, block.stop, size):
            some = v[start : min(start + size, block.stop), None]  # [BLOCK,1,K]
            joint = nodes.add("Mul", [u, nodes.constant(f"v.{start}", some)])  # [B,BLOCK,L,K]
            parts.append(nodes.add("MatMul", [nodes.add("Tanh", [joint]), column]))  # [B,BLOCK,L,1]
        return nodes.add("Squeeze", [nodes.add("Concat", parts, axis=1), nodes.last])

    return score


def _separable(nodes: Nodes, constants: dict[str, np.ndarray], is_narrow: bool) -> Any:
    """Attention logits by the separable form (`sdpl.export.separable`): one matrix product."""
    dtype = np.float16 if is_narrow else np.float32
    shape = nodes.constant("rows", np.array([0, 0, -1], np.int64))
    scaled = nodes.add(
        "Mul", [nodes.add("Unsqueeze", ["u", nodes.last]), nodes.constant("x", constants["x"].astype(dtype))]
    )
    terms = nodes.add("Reshape", [nodes.add("Tanh", [scaled]), shape])  # [B,L,K*R]

    def score(block: slice) -> str:
        """s [B,POOL,L] of a slice of categories."""
        weight = nodes.constant(f"weight.{block.start}", constants["weight"][:, block].astype(dtype))  # [K*R,POOL]
        s = nodes.add("MatMul", [terms, weight])
        return nodes.add("Transpose", [nodes.cast(s, TensorProto.FLOAT) if is_narrow else s], perm=[0, 2, 1])

    return score
