"""The model against plain CLIP and the paper's counts: encoders stay frozen, prompts are exact, sizes are right."""

import json
from importlib import resources

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from configs import BACKBONE
from sdpl.errors import UserError
from sdpl.train.config import ModelConfig
from sdpl.train.model import new_model
from sdpl.train.model.clip import FrozenClip, clip_config
from sdpl.train.model.partial_label_model import clip_word_vectors
from sdpl.train.model.weights import load_weights
from sdpl.train.model.word_vectors import SHIPPED

pytestmark = pytest.mark.slow

CATEGORIES = ("cat", "traffic light", "dog")


@pytest.fixture
def settings(tmp_path):
    """settings(prompts="shared") -> ModelConfig of the tiny backbone."""
    (tmp_path / "b.json").write_text(json.dumps(BACKBONE))
    fixed = dict(backbone="b", backbone_config=str(tmp_path / "b.json"), weights=None, image_size=64, map_pool=1)
    return lambda **changes: ModelConfig(**{**fixed, "joint_dim": 12, "prompt_tokens": 3, **changes})


def build(config, categories=CATEGORIES):
    torch.manual_seed(0)
    return new_model(config, categories)


def coco_names():
    with np.load(resources.files("sdpl.train.model") / "glove" / f"{SHIPPED['glove-coco80']}.npz") as archive:
        return archive["names"].tolist()


def images(count=2, side=64):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("pooling", "count"), [("projected", 4_635_137), ("fused", 4_635_137), ("trunk", 5_159_425)])
def test_the_paper_s_number_of_trainable_parameters(pooling, count):
    names = coco_names()
    model = new_model(ModelConfig(weights=None, word_vectors="glove-coco80", pooling=pooling), tuple(names))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert model.map_size == [7, 7]
    assert model.decoupling.image_projection.in_features == 2048


def test_feature_map_is_clip_s_own_before_its_pooling(settings):
    encoder = build(settings(map_pool=2)).encoder
    x = images().permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    visual = encoder.clip.visual
    expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem((x - mean) / std)))))
    torch.testing.assert_close(encoder.feature_map(images()), F.avg_pool2d(expected, 2), rtol=1e-4, atol=1e-5)


def test_batch_norm_never_drifts(settings):
    model = build(settings()).train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    model(images()).sum().backward()
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_cutting_the_text_after_the_longest_prompt_is_exact(settings):
    model = build(settings(prompts="manual", manual_prompt="a photo of a {}."))
    tokens = model.encoder.tokenize([f"a photo of a {name}." for name in CATEGORIES])
    whole = model.encoder.clip.encode_text(tokens, normalize=True)
    assert model.prompts.tokens.shape[1] < tokens.shape[1]
    torch.testing.assert_close(model.prompts(model.encoder), whole, rtol=1e-5, atol=1e-6)


def test_learned_vectors_take_the_place_of_the_first_tokens(settings):
    model = build(settings())
    prompts, encoder = model.prompts, model.encoder
    assert prompts.context.shape == (3, 3, 16)
    assert prompts.context.std().item() == pytest.approx(0.02, rel=0.3)
    with torch.no_grad():  # with the placeholder's own embedding in place, the prompt is the written sentence
        prompts.context.copy_(encoder.text.token_embedding(prompts.tokens[:, 1:4]))
    written = encoder.encode_sentences([f"X X X {name}." for name in CATEGORIES])
    torch.testing.assert_close(prompts(encoder), written, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("position", "before"), [("end", 3), ("middle", 1), ("front", 0)])
def test_learned_vectors_lie_around_the_name_as_configured(settings, position, before):
    model = build(settings(class_token_position=position, prompts="shared"))
    prompts, encoder = model.prompts, model.encoder
    word = encoder.text.token_embedding(encoder.tokenize("bright red big")[0, 1:4])  # [3,d]
    with torch.no_grad():
        prompts.context.copy_(word[None])
    words = ["bright", "red", "big"]
    written = encoder.encode_sentences([" ".join([*words[:before], n, *words[before:]]) + "." for n in CATEGORIES])
    torch.testing.assert_close(prompts(encoder), written, rtol=1e-5, atol=1e-6)


def test_prompts_of_one_category_change_only_its_feature(settings):
    model = build(settings())
    before = model.text_features()
    with torch.no_grad():
        model.prompts.context[1] += 1
    changed = (model.text_features() != before).any(dim=1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(("prompts", "rows"), [("category-specific", 3), ("shared", 1), ("dual", 6)])
def test_only_prompts_and_head_learn(settings, prompts, rows):
    model = build(settings(prompts=prompts))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "prompts.context" in names
    assert model.prompts.context.shape[0] == rows
    assert all(name.startswith(("prompts.", "decoupling.")) for name in names)
    model(images()).sum().backward()
    assert model.prompts.context.grad.abs().sum() > 0


def test_learned_temperature(settings):
    model = build(settings(learn_temperature=True, inverse_temperature=30.0))
    assert model.inverse_temperature.item() == pytest.approx(30.0)
    model(images()).sum().backward()
    assert model.log_inverse_temperature.grad is not None


def test_without_decoupling_every_location_counts_alike(settings):
    with torch.no_grad():
        attention = build(settings(decoupling="none")).attend(images())[1]
    assert torch.equal(attention, torch.full((2, 3, 4), 0.25))


def test_convolutional_attention_needs_no_word(settings):
    model = build(settings(decoupling="convolutional"))
    before = model.attend(images())[1]
    assert (before.std(dim=(1, 2)) > 0).all()
    model.words.zero_()
    assert torch.equal(model.attend(images())[1], before)
    model(images()).sum().backward()
    assert model.decoupling.convolution.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("probability", ["sigmoid", "softmax"])
def test_scores_are_cosines_times_inverse_temperature(settings, probability):
    model = build(settings(probability=probability, inverse_temperature=5.0))
    with torch.no_grad():
        logits, attention = model.attend(images())
    assert logits.abs().max() <= 5.0
    assert attention.shape == (2, 3, 4)
    expected = logits.sigmoid() if probability == "sigmoid" else logits.softmax(-1)
    np.testing.assert_array_equal(model.scores(images().numpy()), expected.numpy())
    np.testing.assert_allclose(model.scorer()(images().numpy()), expected.numpy(), rtol=1e-5)


def test_the_biases_before_the_softmax_cancel(settings):
    model = build(settings())
    before = model(images())
    with torch.no_grad():
        model.decoupling.joint.bias += 3
        model.decoupling.attention.bias -= 2
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize("backbone", ["ViT-S-32-alt", "convnext_tiny"])
def test_other_towers_give_a_map(backbone):
    model = build(
        ModelConfig(backbone=backbone, weights=None, image_size=128, map_pool=1, joint_dim=8, prompt_tokens=2)
    )
    height, width = model.map_size
    assert height * width >= 4
    assert model(images(side=128)).shape == (2, 3)


def test_openai_weights_switch_quick_gelu_on():
    assert clip_config(ModelConfig(backbone="RN101", weights="openai"))["model_cfg"]["quick_gelu"] is True
    assert "quick_gelu" not in clip_config(ModelConfig(backbone="ViT-B-32", weights="laion2b_s34b_b79k"))["model_cfg"]


def test_a_resnet_s_weights_load_at_another_image_size(settings, tmp_path):
    first = FrozenClip(clip_config(settings()), 1)
    path = tmp_path / "w.pt"
    torch.save(first.clip.state_dict(), path)
    config = settings(image_size=128, weights=str(path))
    second = FrozenClip(clip_config(config), 1)
    load_weights(second.clip, config, path)
    assert torch.equal(second.feature_map(images()), first.feature_map(images()))
    assert second.map_shape(128)[1:] == (4, 4)


def test_clip_word_vectors_differ_and_are_scaled(settings):
    vectors = clip_word_vectors(build(settings()).encoder, CATEGORIES)
    torch.testing.assert_close(vectors.pow(2).mean(dim=1), torch.ones(3))
    assert F.cosine_similarity(vectors[0], vectors[1], dim=0) < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "RN1O1", "backbone_config": None}, "is no open_clip model; did you mean 'RN101'"),
        (
            {"backbone": "RN101", "backbone_config": None, "weights": "openia"},
            "neither a file nor a tag of RN101; did you mean 'openai'",
        ),
        ({"backbone_config": "/nowhere.json"}, "is not an open_clip model config"),
        ({"map_pool": 3}, "the map of a 64-pixel image is only 2x2; lower map_pool"),
        ({"prompt_tokens": 30}, "need more than the text tower's 32 tokens: lower model.prompt_tokens"),
        ({"backbone": "roberta-ViT-B-32", "backbone_config": None}, "text tower is not CLIP's causal transformer"),
        ({"backbone": "ViT-B-16-SigLIP", "backbone_config": None}, "text tower is not CLIP's causal transformer"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_named(settings, change, message):
    with pytest.raises(UserError, match=message):
        build(settings(**change))


def test_braces_in_a_manual_prompt_are_only_text(settings):
    build(settings(prompts="manual", manual_prompt="{} {x} {"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "empty.pt"])
def test_files_that_are_no_weights_are_named(settings, tmp_path, name):
    (tmp_path / name).write_text("" if "empty" in name else "not weights")
    with pytest.raises(UserError, match="cannot be loaded as weights"):
        build(settings(weights=str(tmp_path / name)))


@pytest.mark.parametrize(
    "change", [{"vision_cfg": 5}, {"vision_cfg": {"no_such_key": 1}}, {"text_cfg": {"width": "x"}}]
)
def test_a_backbone_config_that_open_clip_refuses_is_named(settings, tmp_path, change):
    (tmp_path / "bad.json").write_text(json.dumps({**BACKBONE, **change}))
    with pytest.raises(UserError, match=r"is not an open_clip model config|cannot build the backbone"):
        build(settings(backbone_config=str(tmp_path / "bad.json")))


def test_weights_that_do_not_fit_are_named(settings, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"visual.conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="cannot be loaded for b"):
        build(settings(weights=str(path)))


def test_dual_prompts_are_a_softmax_over_presence_and_absence(settings):
    model = build(settings(prompts="dual", inverse_temperature=4.0))
    prompts, encoder = model.prompts, model.encoder
    with torch.no_grad():
        present, absent = (prompts._encode(encoder, half) for half in prompts.context.chunk(2))
        e = F.normalize(torch.randn(3, 16), dim=-1)
        cosines = torch.stack([(e * present).sum(-1), (e * absent).sum(-1)])  # [2,C]
        logit = (e * model.text_features()).sum(-1)
    torch.testing.assert_close(logit.sigmoid(), (4 * cosines).softmax(dim=0)[0])
    model(images()).sum().backward()
    assert (prompts.context.grad.flatten(1).norm(dim=1) > 0).all()


def test_class_vectors_need_no_text(settings):
    model = build(settings(prompts="vectors"))
    torch.testing.assert_close(model.text_features().norm(dim=-1), torch.full((3,), 10.0))
    model(images()).sum().backward()
    assert model.prompts.vectors.grad.abs().sum() > 0
    assert model.prompts.vectors.shape == (3, 16)


def test_underscores_in_names_are_spaces_in_prompts(settings):
    plain = build(settings(), ("hot dog", "cat"))
    written = build(settings(), ("hot_dog", "cat"))
    assert torch.equal(plain.prompts.tokens, written.prompts.tokens)
    assert torch.equal(plain.prompts.slots, written.prompts.slots)
    assert torch.equal(plain.words, written.words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 96, "map_pool": 2}, r"map_pool = 2 does not divide the 3x3 map of a 96-pixel image"),
        ({"image_size": 96, "map_pool": 2}, "take map_pool 1 or 3, or image_size 64 or 128"),
        ({"image_size": 72}, r"image_size = 72: the trunk's cells are 32 pixels wide .* take 64 or 96"),
        (
            {"backbone": "ViT-S-32-alt", "backbone_config": None, "image_size": 150},
            r"cells are 32 pixels wide .* take 128 or 160",
        ),
    ],
)
def test_a_map_that_would_lose_an_edge_is_refused(settings, change, message):
    with pytest.raises(UserError, match=message):
        build(settings(**change))
