import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.train.words import word_vectors


@pytest.fixture
def glove(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 0 0\nfire 0 1 0\nhydrant 0 0 1\ntennis 1 1 1\n", encoding="utf-8")
    return path


def test_a_name_of_several_words_takes_their_mean(glove):
    np.testing.assert_array_equal(word_vectors(str(glove), ["fire hydrant", "Cat"]), [[0, 0.5, 0.5], [1, 0, 0]])


def test_missing_words_are_all_listed_with_the_nearest(glove):
    with pytest.raises(UserError, match=r"2 words: 'hidrant' \(nearest: 'hydrant'\), 'zzz'"):
        word_vectors(str(glove), ["fire hidrant", "zzz", "cat"])


@pytest.mark.parametrize(("line", "message"), [("dog 1 x 3", ":5: is not a word"), ("dog 1 2", "different lengths")])
def test_a_damaged_file_is_named(glove, line, message):
    with open(glove, "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=message):
        word_vectors(str(glove), ["dog", "cat"])


@pytest.mark.parametrize(("source", "names"), [("glove-coco80", ["person", "toothbrush"]), ("glove-voc20", ["sofa"])])
def test_shipped_vectors(source, names):
    vectors = word_vectors(source, names)
    assert vectors.shape == (len(names), 300)
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) > 3).all()


def test_shipped_sets_agree_on_shared_names():
    names = ["cat", "person", "train"]
    np.testing.assert_array_equal(word_vectors("glove-coco80", names), word_vectors("glove-voc20", names))


def test_npz_with_names(tmp_path):
    np.savez(tmp_path / "w.npz", names=np.array(["b", "a"]), vectors=np.eye(2))
    np.testing.assert_array_equal(word_vectors(str(tmp_path / "w.npz"), ["a", "b"]), [[0, 1], [1, 0]])
    with pytest.raises(UserError, match="no vector for 1 categories: 'c'"):
        word_vectors(str(tmp_path / "w.npz"), ["c"])


def test_npz_without_names_or_with_code(tmp_path):
    np.savez(tmp_path / "w.npz", vectors=np.eye(2))
    np.savez(tmp_path / "p.npz", names=np.array([{}], dtype=object), vectors=np.eye(1))
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04")
    for name in ("w.npz", "p.npz", "t.npz"):
        with pytest.raises(UserError, match="needs the arrays 'names' and 'vectors'"):
            word_vectors(str(tmp_path / name), ["a"])


def test_an_unknown_source_is_named():
    with pytest.raises(UserError, match="'glov' is neither 'clip' nor a shipped set"):
        word_vectors("glov", ["a"])
