"""Every method switch exports as the same one operator, and the graph gives PyTorch's scores."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from configs import BACKBONE
from sdpl.export.fold import fold
from sdpl.export.graphs import in_batches
from sdpl.export.onnx import DOMAIN, OPSET, add_head, encoder_to_onnx
from sdpl.targets import PRECISIONS
from sdpl.train.config import ModelConfig
from sdpl.train.model import new_model

CATEGORIES = ("cat", "traffic light", "dog", "hot dog")
VIT = {**BACKBONE, "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}}
TIMM = {
    **BACKBONE,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
}
ENCODERS = {
    "ResNet, map pooled": {"image_size": 128, "map_pool": 2},
    "ViT at another size, map pooled": {"backbone": "vit", "image_size": 96, "map_pool": 2},
    "timm tower": {"backbone": "timm"},
}
HEADS = {
    "the paper's": {},
    "pooling trunk": {"pooling": "trunk"},
    "shared prompts": {"prompts": "shared"},
    "manual prompts": {"prompts": "manual"},
    "name in the middle": {"class_token_position": "middle"},
    "name in front": {"class_token_position": "front", "prompts": "shared"},
    "other prompt length": {"prompt_tokens": 5},
    "convolutional": {"decoupling": "convolutional"},
    "convolutional, trunk": {"decoupling": "convolutional", "pooling": "trunk"},
    "no decoupling": {"decoupling": "none"},
    "no decoupling, trunk": {"decoupling": "none", "pooling": "trunk"},
    "softmax": {"probability": "softmax"},
    "learned temperature": {"learn_temperature": True, "inverse_temperature": 25.0},
}


def model_scorer(path):
    """Scores of a whole ONNX model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"image": images})[0]


def linear_graph(head) -> onnx.ModelProto:
    """f [B,L,D] -> u, g: in place of the encoder's graph, which no switch of the head touches."""
    weight = numpy_helper.from_array(head.weight.numpy(), "weight")
    arrays = [weight, numpy_helper.from_array(head.bias.numpy(), "bias")]
    arrays.append(numpy_helper.from_array(np.array([len(head.q), head.t.shape[1]]), "sizes"))
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["ug"]),
        helper.make_node("Split", ["ug", "sizes"], ["u", "g"], axis=-1),
    ]
    image, u, g = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", "L", None]) for n in ("image", "u", "g"))
    graph = helper.make_graph(nodes, "linear", [image], [u, g], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def trained(settings: dict, folder) -> torch.nn.Module:
    """A model whose every trainable parameter was moved away from its start, so that no term is zero by chance."""
    content = {"vit": VIT, "timm": TIMM}.get(settings.get("backbone"), BACKBONE)
    (folder / "b.json").write_text(json.dumps(content))
    fixed = dict(backbone="b", backbone_config=str(folder / "b.json"), weights=None, image_size=64, map_pool=1)
    torch.manual_seed(0)
    model = new_model(ModelConfig(**{**fixed, "joint_dim": 12, "prompt_tokens": 4, **settings}), CATEGORIES)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def require_one_operator_with_the_same_scores(path, expected, actual):
    heads = [node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN]
    assert heads == ["BilinearAttentionPool"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=PRECISIONS["fp32"].score)
    assert np.ptp(expected, axis=1).min() > 1e-3  # the categories can be told apart, so the comparison says something


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_every_kind_of_encoder_exports_with_the_same_scores(name, tmp_path):
    model = trained(ENCODERS[name], tmp_path)
    side, path = model.config.image_size, tmp_path / "model.onnx"
    head = fold(model)
    encoder = encoder_to_onnx(model.encoder, head, torch.zeros(2, side, side, 3, dtype=torch.uint8))
    onnx.save(add_head(encoder, head.constants, model.config.probability), path)
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    scores = (in_batches(scorer, images) for scorer in (model.scorer(), model_scorer(path)))
    require_one_operator_with_the_same_scores(path, *scores)


@pytest.mark.parametrize("name", HEADS)
def test_every_switch_of_the_head_exports_with_the_same_scores(name, tmp_path):
    model = trained(HEADS[name], tmp_path)
    path, head = tmp_path / "head.onnx", fold(model)
    f = torch.rand(5, 9, len(head.weight))  # [B,L,D]
    onnx.save(add_head(linear_graph(head), head.constants, model.config.probability), path)
    with torch.no_grad():
        expected = model.probabilities(model.pool(f, model.text_features())[0]).numpy()
    require_one_operator_with_the_same_scores(path, expected, model_scorer(path)(f.numpy()))
