"""A result as an object: what it says of itself, its picture, its file; and every way of asking for one."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.runtime import Recognition, Recognizer


@pytest.fixture(scope="module")
def recognizer(bundle):
    with Recognizer.open(bundle) as opened:
        yield opened


@pytest.fixture
def photo(scenes):
    return sorted((scenes / "test").iterdir())[0]


def test_one_image_gives_one_result_and_many_give_a_list(recognizer, photo):
    expected = recognizer.recognize([photo])
    pixels = np.array(Image.open(photo).convert("RGB"))
    for one in (photo, str(photo), photo.read_bytes(), io.BytesIO(photo.read_bytes())):
        assert recognizer.recognize(one) == expected[0]
    exact = recognizer.recognize(Image.open(photo))
    assert recognizer.recognize(pixels) == exact
    assert recognizer.recognize(torch.from_numpy(pixels)) == exact
    assert recognizer.recognize(pixels[:, :, ::-1], channels="bgr") == exact
    batch = recognizer.recognize(np.stack([pixels, pixels]))
    assert [r.scores for r in batch] == [pytest.approx(exact.scores, abs=1e-6)] * 2
    assert recognizer.recognize([]) == []
    assert list(recognizer.recognize(iter([photo]))) == expected


def test_a_string_is_one_path_never_letters(recognizer):
    with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
        recognizer.recognize("gone.jpg")
    with pytest.raises(UserError, match="got int"):
        recognizer.recognize(3)


def test_they_say_what_a_person_wants_to_know(recognizer, photo, bundle):
    shown = repr(recognizer)
    assert str(bundle) in shown
    assert "cpu:fp32" in shown
    assert "10 categories, 64 px" in shown
    assert repr(Bundle.open(bundle)) == f"Bundle({str(bundle)!r}: 10 categories, 64 px, cpu:fp32 (verified))"
    result = Recognition(("cat",), {"cat": 0.9, "dog": 0.2}, "cpu:fp32")
    assert repr(result) == "Recognition(cat 0.90; best below its threshold: dog 0.20; cpu:fp32)"
    assert "nothing above threshold; best below" in repr(Recognition((), {"cat": 0.1}, "cpu:fp32"))


def test_top_dict_and_files(recognizer, photo, tmp_path):
    result = recognizer.recognize(photo)
    assert result.top(2) == list(result.scores.items())[:2]
    values = json.loads(result.save(tmp_path / "a.json").read_text())
    assert values == result.to_dict()
    assert values["image"] == str(photo)
    for name in ("a.png", "a.jpg"):
        with Image.open(result.save(tmp_path / name)) as picture:
            assert picture.width > 600
    with pytest.raises(UserError, match=r"a\.txt: expected a name that ends in \.json, \.png"):
        result.save(tmp_path / "a.txt")


def test_a_picture_has_the_attention_that_was_asked_for(recognizer, photo):
    plain, attended = recognizer.recognize(photo), recognizer.recognize(photo, attention=True)
    assert plain == attended
    assert plain.attention == {}
    assert attended.attention["seven"].sum() == pytest.approx(1, abs=1e-5)
    assert attended.plot().height > plain.plot().height  # a row of heat maps
    with pytest.raises(UserError, match="holds no image to draw"):
        Recognition((), {"cat": 0.1}, "cpu:fp32").plot()
