import pickle
import shutil

import numpy as np
import pytest
import torch

from sdpl.errors import UserError
from sdpl.train.checkpoint import FORMAT_VERSION, load_checkpoint, restore_model, save_checkpoint


def test_holds_everything_and_restores_the_same_scores(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    config, model = restore_model(content)
    images = content["proof_images"].numpy()
    assert images.shape == (6, 64, 64, 3)
    path = tmp_path / "again.ckpt"
    save_checkpoint(path, config, model, content["proof_images"], content["resume"])
    _, again = restore_model(load_checkpoint(path))
    np.testing.assert_array_equal(again.scores(images), model.scores(images))
    assert not model.training


def test_needs_no_file_of_the_training_run(checkpoint, tmp_path, monkeypatch):
    """The backbone's configuration and weights travel in the checkpoint."""
    moved = shutil.copy(checkpoint, tmp_path / "moved.ckpt")
    content = load_checkpoint(tmp_path / "moved.ckpt")
    content["config"]["model"]["backbone_config"] = "/gone.json"
    restore_model(content)
    assert moved.exists()


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def with_content(checkpoint, path, **changes):
    torch.save({**torch.load(checkpoint, weights_only=True), **changes}, path)


def without_words(checkpoint, path):
    torch.save({k: v for k, v in torch.load(checkpoint, weights_only=True).items() if k != "words"}, path)


DAMAGE = {
    "missing": lambda checkpoint, path: None,
    "folder": lambda checkpoint, path: path.mkdir(),
    "truncated": lambda checkpoint, path: path.write_bytes(checkpoint.read_bytes()[:50_000]),
    "empty": lambda checkpoint, path: path.write_bytes(b""),
    "text": lambda checkpoint, path: path.write_text("epoch 1, all good"),
    "malicious": lambda checkpoint, path: with_content(checkpoint, path, extra=Bomb()),
    "old pickle": lambda checkpoint, path: path.write_bytes(pickle.dumps(Bomb())),
    "foreign": lambda checkpoint, path: torch.save({"state_dict": {"w": torch.zeros(1)}}, path),
    "not a dict": lambda checkpoint, path: torch.save(torch.zeros(1), path),
    "newer": lambda checkpoint, path: with_content(checkpoint, path, format_version=FORMAT_VERSION + 1),
    "incomplete": without_words,
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such checkpoint"),
        ("folder", "is a folder"),
        ("truncated", "is truncated or not a checkpoint"),
        ("empty", "is truncated or not a checkpoint"),
        ("text", "is truncated or not a checkpoint"),
        ("malicious", "is no checkpoint, or holds code"),
        ("old pickle", "is no checkpoint, or holds code"),
        ("foreign", "was not written by sdpl-train"),
        ("not a dict", "was not written by sdpl-train"),
        ("newer", "update sdpl"),
        ("incomplete", "has no words"),
    ],
)
def test_what_is_no_checkpoint_is_refused(kind, message, checkpoint, tmp_path, capsys):
    path = tmp_path / "bad.ckpt"
    DAMAGE[kind](checkpoint, path)
    with pytest.raises(UserError, match=f"bad.ckpt: .*{message}"):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_weights_of_another_shape_are_named(checkpoint):
    content = load_checkpoint(checkpoint)
    content["config"]["model"]["joint_dim"] = 5
    with pytest.raises(UserError, match="its weights do not fit its configuration"):
        restore_model(content)


def test_a_full_disk_keeps_the_old_checkpoint(checkpoint, tmp_path, monkeypatch):
    content = load_checkpoint(checkpoint)
    config, model = restore_model(content)
    path = tmp_path / "model.ckpt"
    shutil.copy(checkpoint, path)
    before = path.read_bytes()

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*PytorchStreamWriter failed"):
        save_checkpoint(path, config, model, content["proof_images"], {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
