"""Which GPUs are meant; what cannot be is one line."""

import pytest

from sdpl.errors import UserError
from sdpl.scale.devices import parse_devices


def test_what_names_gpus():
    assert parse_devices(None) == ()
    assert parse_devices("1") == (1,)
    assert parse_devices("cuda:0, cuda:2") == parse_devices("0,2") == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "--device 'gpu': expected the numbers of GPUs, such as 0 or 0,1, or all."),
        ("0,", "expected the numbers of GPUs"),
        ("-1", "expected the numbers of GPUs"),
        ("1,1", "--device 1,1: names a GPU twice."),
        ("all", "--device all: no CUDA GPU was found"),
    ],
)
def test_what_does_not_is_one_line(fails, bundle, photos, tmp_path, text, message):
    with pytest.raises(UserError):
        parse_devices(text)
    assert message in fails("score", bundle, photos[0], "--out", tmp_path / "out", "--device", text)
    assert not list(tmp_path.glob("out/shard*"))


def test_a_gpu_that_is_not_there_or_on_ray(fails, bundle, photos, tmp_path):
    words = ("score", bundle, photos[0], "--out", tmp_path / "out", "--device", "0,1")
    assert "no CUDA GPU was found" in fails(*words)
    assert "--device is for one process" in fails(*words, "--ray", "local")
