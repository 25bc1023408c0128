"""Checkpoints that load and hold what a checkpoint cannot: one line each, before anything is built from them."""

import copy
import zipfile

import numpy as np
import pytest
import torch

from sdpl.errors import UserError
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.contents import HASHES, hashes
from sdpl.train.resume import check_state


@pytest.fixture(scope="module")
def content(checkpoint):
    return torch.load(checkpoint, weights_only=True)


@pytest.fixture
def loaded(content, tmp_path):
    """loaded(change, rehash) -> the message of loading the content after `change` was done to it."""

    def run(change, rehash=True):
        changed = copy.deepcopy(content)
        change(changed)
        if rehash:
            changed[HASHES] = hashes(changed)
        torch.save(changed, tmp_path / "x.ckpt")
        with pytest.raises(UserError) as caught:
            restore_model(load_checkpoint(tmp_path / "x.ckpt"), "x.ckpt")
        return str(caught.value)

    return run


def put(*path):
    """put("a", "b", value) sets content["a"]["b"]."""
    *keys, last, value = path

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


FIRST = "prompts.context"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("state", FIRST, torch.full((10, 4, 16), float("nan"))), f"state/{FIRST} has NaN or infinite values"),
        (put("words", torch.full((10, 16), float("inf"))), "words has NaN or infinite values"),
        (put("state", FIRST, torch.zeros(3, 3)), "its weights do not fit its configuration"),
        (put("state", FIRST, torch.zeros(10, 4, 16, dtype=torch.complex64)), "a value of type Tensor"),
        (put("state", []), "state: expected the model's tensors by name"),
        (put("words", torch.zeros(3, 16)), "words: expected a word vector for each of the 10 categories"),
        (put("categories", []), "has 0 categories"),
        (put("categories", ["a\x1b[0m"] * 10), "has a control character"),
        (put("categories", 7), "categories: expected a list of names"),
        (put("thresholds", [0.5]), "thresholds: expected a number for each of the 10 categories"),
        (put("thresholds", [float("nan")] * 10), "thresholds: expected a number"),
        (put("proof_images", torch.zeros(6, 64, 64, 3)), r"proof_images: expected images uint8 [N,64,64,3]"),
        (put("proof_images", torch.zeros(1, 1, 1, 3, dtype=torch.uint8)), "proof_images: expected images"),
        (put("config", "model", "joint_dim", 10**12), "less than or equal to 65536"),
        (put("config", None), "x.ckpt"),
        (put("clip_config", "model_cfg", "text_cfg", "hf_model_name", "someone/code"), "would load something else"),
        (put("clip_config", "model_cfg", "vision_cfg", "timm_model_name", "hf-hub:someone/x"), "is no plain name"),
        (put("clip_config", "model_cfg", "text_cfg", "width", 100_000), "GB of weights"),
        (put("clip_config", "model_cfg", "text_cfg", "layers", 10**6), "is too large"),
        (put("clip_config", "model_cfg", "vision_cfg", "layers", [1]), "its model cannot be built"),
        (put("clip_config", "model_cfg", "vision_cfg", "width", torch.zeros(2)), "width is a tensor"),
        (put("clip_config", "preprocess_cfg", "std", [0, 0, 0]), "mean and std are not three numbers"),
        (put("extra", [[[[[[[[[[[[[[1]]]]]]]]]]]]]]), "holds more values, or deeper"),
        (put("extra", {1.5: 0}), "a key that is neither text nor a number"),
        (put("format_version", 0), "its format version is 0"),
        (put("format_version", "2"), "its format version is 2"),
        (put("clip_config", torch.zeros(2, 3)), "clip_config is not a backbone of these weights"),
        (put("clip_config", "model_cfg", torch.zeros(2, 3)), "clip_config is not a backbone of these weights"),
    ],
)
def test_what_cannot_be_is_named(loaded, change, message):
    assert message in loaded(change)


def test_a_tensor_that_claims_more_than_it_holds_is_not_touched(loaded):
    huge = torch.zeros(1).expand(10**6, 10**6)  # 4 TB, as soon as anything computes with it
    assert "a value of type Tensor" in loaded(put("state", FIRST, huge), rehash=False)


def test_other_weights_of_the_right_shape_are_noticed(loaded):
    assert f"state/{FIRST} is damaged (hash differs)" in loaded(
        put("state", FIRST, torch.zeros(10, 4, 16)), rehash=False
    )
    assert "plain values is damaged" in loaded(put("thresholds", [0.4] * 10), rehash=False)
    assert "it was not written whole" in loaded(lambda content: content.pop(HASHES), rehash=False)


def test_every_flipped_bit_is_noticed_or_changes_nothing(checkpoint, content, tmp_path):
    """Zip archives have bytes that mean nothing: then all of the content is as it was."""
    random, original = np.random.default_rng(0), checkpoint.read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(original)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        (tmp_path / "x.ckpt").write_bytes(data)
        try:
            found = load_checkpoint(tmp_path / "x.ckpt")
        except UserError:
            refused += 1
            continue
        assert hashes(found) == content[HASHES]
    assert refused > 40


def test_a_checkpoint_of_format_1_is_still_read(content, tmp_path):
    old = {key: value for key, value in content.items() if key != HASHES} | {"format_version": 1}
    torch.save(old, tmp_path / "old.ckpt")
    restore_model(load_checkpoint(tmp_path / "old.ckpt"))


def test_an_archive_that_unpacks_to_more_than_it_is_is_not_unpacked(checkpoint, tmp_path):
    with (
        zipfile.ZipFile(checkpoint) as source,
        zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("more", bytes(10**8))
    with pytest.raises(UserError, match="is a compressed archive"):
        load_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("epoch", -1), "epoch: Input should be greater than or equal to 0"),
        (put("epoch", 5), "rows for 5 epochs"),
        (put("step", "0"), "step: Input should be a valid integer"),
        (put("loss_sum", float("nan")), "loss_sum: Input should be a finite number"),
        (put("history", [{}, {}]), "history has other columns"),
        (put("rng", torch.zeros(5056, dtype=torch.uint8)), "its resume state is damaged"),
        (put("shuffle", torch.zeros(3)), "its resume state is damaged"),
        (put("learner", None), "learner: Input should be a valid dictionary"),
    ],
)
def test_a_damaged_resume_state_is_named(content, change, message):
    state = copy.deepcopy(content["resume"])
    check_state(state, "last.ckpt")
    change(state)
    with pytest.raises(UserError, match=message):
        check_state(state, "last.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda learner: learner.update(steps=-1), "steps is no count"),
        (lambda learner: learner.update(trained=[torch.zeros(1)]), "it averages other parameters"),
        (lambda learner: learner["optimiser"]["param_groups"][0].update(momentum=0.1), "other momentum"),
        (lambda learner: learner["optimiser"]["param_groups"][0].update(params=[0]), "other params"),
        (lambda learner: learner["optimiser"]["state"][0].update(momentum_buffer=torch.zeros(2, 2)), "another shape"),
        (
            lambda learner: learner["optimiser"]["param_groups"][0].update(momentum=torch.zeros(2)),
            "its optimiser is not",
        ),
        (lambda learner: learner.update(optimiser=[]), "its optimiser is not of this run"),
    ],
)
def test_an_optimiser_of_another_run_is_named(content, checkpoint, change, message):
    from sdpl.train.distributed import Processes
    from sdpl.train.step import Learner

    config, model = restore_model(load_checkpoint(checkpoint))
    learner, state = Learner(model, config, Processes()), copy.deepcopy(content["resume"]["learner"])
    learner.load_state(state)
    change(state)
    with pytest.raises(UserError, match=message):
        Learner(model, config, Processes()).load_state(state)
