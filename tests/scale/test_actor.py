"""The adapter for Ray Data, called as Ray Data calls it: batches of columns."""

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.runtime import Recognizer
from sdpl.scale import RecognizerActor


def test_bytes_and_paths_and_bad_images(bundle, photos):
    actor = RecognizerActor(str(bundle))
    data = np.array([photos[0].read_bytes(), b"x", photos[1].read_bytes()], dtype=object)
    out = actor({"bytes": data, "id": np.arange(3)})
    assert list(out) == ["bytes", "id", "scores", "error"]
    with Recognizer.open(bundle) as recognizer:
        expected = [recognizer.scores(recognizer.preprocess(photo)[None])[0] for photo in photos[:2]]
    np.testing.assert_allclose(out["scores"][[0, 2]], expected, atol=1e-6)
    assert np.isnan(out["scores"][1]).all()
    assert [bool(text) for text in out["error"]] == [False, True, False]
    out = RecognizerActor(str(bundle), embeddings=True)({"bytes": data})
    with Recognizer.open(bundle) as recognizer:
        np.testing.assert_allclose(out["embedding"][[0, 2]], recognizer.embed(photos[:2]), atol=1e-6)
    assert np.isnan(out["embedding"][1]).all()
    paths = actor({"path": np.array([str(photos[0])], dtype=object)})
    np.testing.assert_allclose(paths["scores"], expected[:1], atol=1e-6)


def test_a_batch_without_images(bundle):
    with pytest.raises(UserError, match="no column bytes or image or path; it has text"):
        RecognizerActor(str(bundle))({"text": np.array(["a"])})
    with pytest.raises(UserError, match="no column photo; it has path"):
        RecognizerActor(str(bundle), column="photo")({"path": np.array(["a"])})
