"""The head of `pooling: fused` as standard ONNX nodes. It pools tanh(u v_c), which differs by category, so it is not
the operator that the GPU kernel and the separable head compute: whole graphs only (ONNX Runtime on the CPU, OpenVINO).
"""

import numpy as np
import onnx

from sdpl.errors import UserError
from sdpl.export.head import BLOCK_VALUES, Nodes, finish
from sdpl.kernels import EPS
from sdpl.targets import TargetSpec
from sdpl.train.config import ModelConfig


def require_exportable(model: ModelConfig, targets: tuple[TargetSpec, ...], head: str) -> None:
    """Raise UserError for a head that is not the operator, where a target or an option needs it to be."""
    if model.decoupling == "sigmoid-mask":
        raise UserError(
            "model.decoupling = 'sigmoid-mask' is for training and evaluation only: its masks are no softmax, and so "
            "not the exported operator. 'convolutional' is its exportable relative."
        )
    if model.pooling != "fused":
        return
    wrong = [str(spec) for spec in targets if spec.backend.needs_gpu or spec.precision == "int8"]
    if wrong or head != "exact":
        what = f"target {wrong[0]}" if wrong else f"--head {head}"
        raise UserError(
            f"model.pooling = 'fused' is not the operator that {what} needs: export it with --target cpu:fp32 or "
            "--target openvino:fp32."
        )


def add_fused_head(model: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str) -> onnx.ModelProto:
    """The same graph with the fused head after `u` [B,L,K]: outputs `scores` [B,C] and `attention` [B,C,L].

    constants: v [C,K], q [K], t [C,E], and the map to the embedding, map [K,E] and bias [E]; float32.
    """
    graph, nodes = model.graph, Nodes(model.graph)
    locations = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    v, t = constants["v"], constants["t"]
    size = max(1, BLOCK_VALUES // (locations * v.shape[1]))
    column, eps = nodes.constant("q", constants["q"][:, None]), nodes.constant("eps", np.array(EPS, np.float32))
    to_embedding, bias = nodes.constant("map", constants["map"]), nodes.constant("bias", constants["bias"])
    u = nodes.add("Unsqueeze", ["u", nodes.constant("axis.categories", np.array([1], np.int64))])  # [B,1,L,K]
    second_last = nodes.constant("axis.locations", np.array([2], np.int64))
    logits, attentions = [], []
    for start in range(0, len(v), size):
        some = nodes.constant(f"v.{start}", v[start : start + size, None])  # [BLOCK,1,K]
        y = nodes.add("Tanh", [nodes.add("Mul", [u, some])])  # [B,BLOCK,L,K]
        a = nodes.add("Softmax", [nodes.add("MatMul", [y, column])], axis=2)  # [B,BLOCK,L,1]
        pooled = nodes.add("ReduceSum", [nodes.add("Mul", [a, y]), second_last], keepdims=0)  # [B,BLOCK,K]
        e = nodes.add("Add", [nodes.add("MatMul", [pooled, to_embedding]), bias])  # [B,BLOCK,E]
        logits.append(nodes.cosine(e, nodes.constant(f"t.{start}", t[start : start + size]), eps))  # [B,BLOCK]
        attentions.append(nodes.add("Squeeze", [a, nodes.last]))  # [B,BLOCK,L]
    return finish(model, nodes, logits, attentions, probability, len(t))
