"""One step: the gradient is the batch's however it is cut up, and what is not finite is named."""

import copy
import json

import pytest
import torch

import sdpl.train.step as step
from configs import BACKBONE
from sdpl.train.config import check_config
from sdpl.train.distributed import Processes
from sdpl.train.losses import partial_asymmetric_loss
from sdpl.train.model import new_model
from sdpl.train.step import Learner, NotFiniteError

pytestmark = pytest.mark.slow

CATEGORIES = ("cat", "traffic light", "dog")
LABELS = torch.tensor([[1, -1, 0], [0, 1, -1], [-1, 0, 0], [1, 1, -1], [0, 0, 0]], dtype=torch.int8)


@pytest.fixture
def learner(tmp_path):
    """learner(train={}, model={}) -> a Learner of a tiny model, always with the same weights."""
    (tmp_path / "b.json").write_text(json.dumps(BACKBONE))

    def make(train=(), categories=CATEGORIES, **model):
        fixed = dict(backbone="b", backbone_config=str(tmp_path / "b.json"), weights=None, image_size=64, map_pool=1)
        values = {"model": {**fixed, "joint_dim": 12, "prompt_tokens": 3, **model}, "train": dict(train)}
        config = check_config({"data": {"train": {"annotations": "a"}}, **values})
        torch.manual_seed(0)
        return Learner(new_model(config.model, categories), config, Processes())

    return make


def maps(learner, rows):
    f = torch.rand(5, 4, learner.model.channels, generator=torch.Generator().manual_seed(1))  # [N,L,D]
    return rows, f[rows]


def parameters(learner):
    return {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}


def changed(before, learner):
    return {name for name, p in parameters(learner).items() if not torch.equal(p, before[name])}


def test_a_batch_in_parts_is_the_same_batch(learner):
    whole, parts = learner(), learner()
    loss = whole.step([maps(whole, [0, 1, 2, 3, 4])], LABELS, 5, lr=0.1)
    cut = parts.step([maps(parts, [0, 1, 2]), maps(parts, [3]), maps(parts, [4])], LABELS, 5, lr=0.1)
    assert cut == pytest.approx(loss, rel=1e-6)
    for name, value in parameters(whole).items():
        torch.testing.assert_close(parameters(parts)[name], value, rtol=1e-5, atol=1e-7)


def test_an_image_that_is_left_out_counts_as_one_without_a_known_label(learner):
    with_it, without = learner(), learner()
    unknown = with_it.step([maps(with_it, [0, 1, 4])], LABELS, 3, lr=0.1)
    assert without.step([maps(without, [0, 1])], LABELS, 3, lr=0.1) == pytest.approx(unknown, rel=1e-6)


def test_prompts_that_learn_nothing_run_the_text_tower_once(learner, monkeypatch):
    for prompts, expected in (("manual", 1), ("shared", 2)):
        one = learner(prompts=prompts)
        calls = []
        original = type(one.model.encoder).encode_embeddings
        monkeypatch.setattr(
            type(one.model.encoder), "encode_embeddings", lambda *a, c=calls, o=original: (c.append(1), o(*a))[1]
        )
        for _ in range(2):
            one.step([maps(one, [0, 1])], LABELS, 2, lr=0.1)
        assert len(calls) == expected
        monkeypatch.undo()
        torch.testing.assert_close(one.text_features(), one.model.text_features())


def test_a_learned_temperature_learns_with_frozen_prompts(learner):
    one = learner(prompts="manual", learn_temperature=True)
    before = parameters(one)
    one.step([maps(one, [0, 1])], LABELS, 2, lr=0.1)
    assert "log_inverse_temperature" in changed(before, one)


def test_the_average_follows_slowly_and_is_what_is_saved(learner):
    one, plain = learner({"ema_decay": 0.5}), learner()
    start = parameters(one)
    for both in (one, plain):
        both.step([maps(both, [0, 1])], LABELS, 2, lr=0.1)
    trained = parameters(one)
    for name, value in parameters(plain).items():
        assert torch.equal(trained[name], value)
    decay = min(0.5, 2 / 11)
    with one.averaged():
        for name, value in parameters(one).items():
            torch.testing.assert_close(value, decay * start[name] + (1 - decay) * trained[name])
    assert not changed(trained, one)


def test_state_with_an_average_is_restored(learner):
    one = learner({"ema_decay": 0.9})
    one.step([maps(one, [0, 1])], LABELS, 2, lr=0.1)
    state = copy.deepcopy(one.state())
    with one.averaged():
        saved = copy.deepcopy(one.model.state_dict())
    other = learner({"ema_decay": 0.9})
    other.model.load_state_dict(saved)
    other.load_state(state)
    for each in (one, other):
        each.step([maps(each, [2, 3])], LABELS, 2, lr=0.1)
    assert not changed(parameters(one), other)
    with one.averaged(), other.averaged():
        assert not changed(parameters(one), other)


def spoil_map(one):
    rows, f = maps(one, [0, 1])
    return [(rows, f.clone().fill_(float("inf")))]


def spoil_weight(one):
    one.model.decoupling.joint.weight.data[0, 0] = float("nan")
    return [maps(one, [0, 1])]


def spoil_logits(one):
    one.model.decoupling.to_embedding.weight.data.fill_(3e38)
    return [maps(one, [0, 1])]


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (spoil_map, "the image tower's map overflows in fp32: take train.precision"),
        (spoil_weight, "decoupling.joint.weight is no longer finite, the steps were too large: lower train.lr"),
        (spoil_logits, "the logits overflow"),
    ],
)
def test_what_is_not_finite_is_named_and_nothing_is_learned(learner, spoil, cause):
    one = learner()
    parts, before = spoil(one), parameters(one)
    with pytest.raises(NotFiniteError, match=cause) as caught:
        one.step(parts, LABELS, 2, lr=0.1)
    assert list(caught.value.rows) == [0, 1]
    assert changed(before, one) <= {"decoupling.joint.weight"}  # nan is not equal to itself


def test_with_thousands_of_categories_the_shared_layers_move_as_with_80(learner, monkeypatch):
    """The loss sums over the categories, and so do the gradients of what they share."""

    def growth(count):
        """Of U's norm over a few steps in which most categories are absent."""
        own = learner(categories=tuple(f"category {i}" for i in range(count)), prompts="manual")
        weight = own.model.decoupling.image_projection.weight
        labels = -torch.ones(5, count, dtype=torch.int8)
        before = float(weight.detach().norm())
        for _ in range(8):
            own.step([maps(own, [0, 1, 2, 3, 4])], labels, 5, lr=0.002)
        return float(weight.detach().norm()) / before

    usual = growth(80)
    assert growth(3000) < 1.2 * usual
    monkeypatch.setattr(step, "MOST_CATEGORIES", 10**9)
    assert growth(3000) > 5 * usual  # the plain sum


def test_the_loss_of_few_categories_is_the_paper_s_sum(learner):
    own = learner()
    rows, f = maps(own, [0, 1])
    logits = own.model.pool(f, own.text_features())[0]
    expected = partial_asymmetric_loss(logits, LABELS[[0, 1]]).detach()
    assert own.step([(rows, f)], LABELS, 2, lr=0.1) == pytest.approx(float(expected), rel=1e-6)
