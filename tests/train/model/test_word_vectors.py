import tracemalloc

import numpy as np
import pytest

from sdpl.errors import UserError
from sdpl.train.model.word_vectors import word_vectors


@pytest.fixture
def glove(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 0 0\nfire 0 1 0\nhydrant 0 0 1\ntennis 1 1 1\n", encoding="utf-8")
    return path


def test_a_name_of_several_words_takes_their_mean(glove):
    np.testing.assert_array_equal(word_vectors(str(glove), ["fire hydrant", "Cat"]), [[0, 0.5, 0.5], [1, 0, 0]])


def test_missing_words_are_all_listed_with_the_nearest(glove):
    with pytest.raises(UserError, match=r"2 words: 'hidrant' \(nearest: hydrant\), 'zzz'"):
        word_vectors(str(glove), ["fire hidrant", "zzz", "cat"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog 1 x 3", ":5: is not a word and 3 numbers"),
        ("dog 1 2", ":5: is not a word and 3 numbers"),
        ("dog 1 nan 2", ":5: is not a word and 3 numbers"),
    ],
)
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
    with pytest.raises(UserError, match="no vector for 1 category: 'c'"):
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


def test_npz_of_other_shapes(tmp_path):
    for names, vectors in ((["a"], np.eye(2)), (["a", "b"], np.ones(2)), (["a", "b"], np.eye(2, dtype=int))):
        np.savez(tmp_path / "w.npz", names=np.array(names), vectors=vectors)
        with pytest.raises(UserError, match=r"expected one vector of floats for each of its \d names, got"):
            word_vectors(str(tmp_path / "w.npz"), ["a"])


def test_npy_with_its_names_beside_it(tmp_path):
    np.save(tmp_path / "w.npy", np.eye(2))
    with pytest.raises(UserError, match=r"w.npy: needs the names of its rows in .*w.txt, one a line"):
        word_vectors(str(tmp_path / "w.npy"), ["b"])
    (tmp_path / "w.txt").write_text("a\nb c\n")
    np.testing.assert_array_equal(word_vectors(str(tmp_path / "w.npy"), ["B_C"]), [[0, 1]])
    (tmp_path / "w.txt").write_text("a\nA\n")
    with pytest.raises(UserError, match=r"w.npy: a category name appears twice: a = A"):
        word_vectors(str(tmp_path / "w.npy"), ["a"])
    np.save(tmp_path / "w.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"w.npy: cannot be read"):
        word_vectors(str(tmp_path / "w.npy"), ["a"])


@pytest.mark.parametrize("source", ["glove-coco80", "glove-voc20"])
def test_categories_of_the_same_words_are_refused(source):
    with pytest.raises(UserError, match="a category name appears twice: person = Person; each must be unique"):
        word_vectors(source, ["person", "car", "Person"])


def test_words_are_found_whatever_their_case_and_divider():
    np.testing.assert_array_equal(
        word_vectors("glove-coco80", ["Traffic_Light"]), word_vectors("glove-coco80", ["traffic light"])
    )


def test_the_other_dialects_of_glove_s_format(tmp_path):
    """GloVe 840B has words with spaces in them, word2vec's text files begin with their size."""
    path = tmp_path / "w.txt"
    path.write_text("3 3\n, 0 0 0\n. . . 1 1 1\nat name@domain.com 2 2 2\nat 3 4 5 \n")
    np.testing.assert_array_equal(word_vectors(str(path), ["at"]), [[3, 4, 5]])


def test_a_glove_file_is_streamed(tmp_path):
    """Far less memory than the file: only the needed lines are kept, and reading stops with the last of them."""
    path = tmp_path / "big.txt"
    row = " 0.12345" * 300 + "\n"
    with open(path, "w") as stream:
        for i in range(8000):
            stream.write(f"w{i}{row}")
        stream.write(f"cat{row}")
    tracemalloc.start()
    word_vectors(str(path), ["cat"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 15e6
    assert peak < 2e6
