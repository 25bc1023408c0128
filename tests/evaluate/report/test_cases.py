import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdpl.data.formats import read_labels
from sdpl.evaluate.evaluation import Evaluated
from sdpl.evaluate.report.cases import SIDE, ScoredModel, error_cards, sample_cards, sample_rows, worst_errors


@pytest.fixture
def data(scenes):
    return read_labels(scenes / "annotations" / "instances_test.json")


def model_looking_at(cell, categories) -> Evaluated:
    """Attends to one cell of a 2x2 map, whatever the image and the category."""

    def attention(images):
        maps = np.zeros((len(images), len(categories), 4), np.float32)
        maps[..., cell] = 1
        return np.zeros(maps.shape[:2], np.float32), maps.reshape(*maps.shape[:2], 2, 2)

    return Evaluated(None, attention, categories, 32, np.full(len(categories), 0.5), "PyTorch")


def picture(uri):
    head, content = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)


def test_the_worst_first_and_unknown_labels_are_no_errors():
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.1, 0.2]])
    labels = np.array([[0, -1, 1], [-1, 1, 0]])
    positives, negatives = worst_errors(scores, labels, np.array([0.5, 0.5, 0.5]), 9)
    assert [(case.row, case.column, case.score) for case in positives] == [(0, 1, 0.8), (1, 0, 0.6)]
    assert [(case.row, case.column, case.score) for case in negatives] == [(1, 1, 0.1)]
    positives, _ = worst_errors(scores, labels, np.array([0.7, 0.5, 0.5]), 9)
    assert [case.column for case in positives] == [1]  # each category has its own threshold


def test_one_bad_category_does_not_hide_the_others():
    scores = np.full((6, 2), 0.9)
    scores[:, 1] = 0.6
    positives, negatives = worst_errors(scores, np.full((6, 2), -1), np.full(2, 0.5), 8)
    assert [case.column for case in positives] == [0, 0, 0, 1, 1, 1, 0, 0]
    assert negatives == []
    assert worst_errors(scores, np.full((6, 2), -1), np.full(2, 0.5), 0) == ([], [])


def test_an_error_is_shown_with_the_attention_of_its_own_category(data):
    scores = np.where(data.labels > 0, 0.1, 0.9)  # wrong everywhere
    model = model_looking_at(3, data.categories)
    positives, _ = worst_errors(scores, data.labels, model.thresholds, 4)
    cards = error_cards(positives, model, data)
    assert len(cards) == 4
    for card, case in zip(cards, positives, strict=True):
        assert card.name == data.images[case.row].name
        assert card.category == data.categories[case.column]
        assert card.category not in card.present
        assert card.peak == 4.0
        photo, heat = picture(card.photo), picture(card.attention)
        assert photo.shape == heat.shape
        assert max(photo.shape) <= SIDE
        half = heat.shape[0] // 4
        assert heat[-half:, -half:].sum() > 1.5 * heat[:half, :half].sum()  # bright at the lower right


def test_samples_show_the_best_scores_and_what_they_missed(data):
    scores = np.tile(np.linspace(1, 0, 10), (8, 1))  # "zero" is always the best guess
    labels = np.full((8, 10), -1, np.int8)
    labels[:, 1], labels[:, 2], labels[:, 9] = 1, 0, 1
    own = ScoredModel("m", model_looking_at(0, data.categories), scores)
    cards = sample_cards([own], data.with_labels(labels), sample_rows(data, 3))
    assert [card.name for card in cards] == ["000000.jpg", "000003.jpg", "000007.jpg"]
    for card in cards:
        assert [(bar.category, bar.label) for bar in card.models[0].bars[:3]] == [
            ("zero", "absent"), ("one", "present"), ("two", "unknown"),
        ]  # fmt: skip
        assert [bar.category for bar in card.models[0].missed] == ["nine"]
    assert sample_rows(data, 100) == list(range(8))
    assert sample_rows(data, 0) == []
    assert sample_cards([own], data, []) == []


def test_samples_show_where_each_model_looked_for_the_same_category(data):
    labels = np.full((8, 10), -1, np.int8)
    labels[0, [2, 5]] = 1
    first = np.tile(np.linspace(1, 0, 10), (8, 1))
    other = model_looking_at(0, data.categories[::-1])  # its own order of the categories
    maps = np.zeros((8, 10, 2, 2), np.float32)
    maps[:, data.categories[::-1].index("two"), 1, 1] = 1  # at the lower right for "two" only
    other = replace(other, attention=lambda images: (None, maps[: len(images)]))
    models = [ScoredModel("a", model_looking_at(0, data.categories), first), ScoredModel("b", other, first[:, ::-1])]
    cards = sample_cards(models, data.with_labels(labels), [0, 7])
    assert [card.category for card in cards] == ["two", "zero"]  # present and scored highest by "a"; its best
    assert [own.model for own in cards[0].models] == ["a", "b"]
    assert cards[0].models[0].score == pytest.approx(first[0, 2])
    assert cards[0].models[1].score == pytest.approx(first[0, 7])
    assert [own.peak for own in cards[0].models] == [4.0, 4.0]
    left, right = (picture(own.attention) for own in cards[0].models)
    half = left.shape[0] // 4
    assert left[:half, :half].sum() > 1.5 * left[-half:, -half:].sum()
    assert right[-half:, -half:].sum() > 1.5 * right[:half, :half].sum()


def test_no_image_has_more_than_two_cards():
    labels = np.full((2, 6), -1, np.int8)
    labels[:, 3:] = 1
    scores = np.where(labels < 0, 0.9, 0.1)
    wrong = worst_errors(scores, labels, np.full(6, 0.5), 6)
    rows = [case.row for cases in wrong for case in cases]
    assert sorted(rows) == [0, 0, 1, 1]
    wrong = worst_errors(scores, labels, np.full(6, 0.5), 6, elsewhere=[1])  # in a card of the best scores
    assert sorted(case.row for cases in wrong for case in cases) == [0, 0, 1]
