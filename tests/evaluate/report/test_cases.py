import base64
import io

import numpy as np
import pytest
from PIL import Image

from sdpl.data.formats import read_labels
from sdpl.evaluate.evaluation import Evaluated
from sdpl.evaluate.report.cases import SIDE, error_cards, sample_cards, worst_errors


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
    cards = sample_cards({"m": scores}, data.with_labels(labels), 3)
    assert [card.name for card in cards] == ["000000.jpg", "000003.jpg", "000007.jpg"]
    for card in cards:
        assert [(bar.category, bar.label) for bar in card.models[0].bars[:3]] == [
            ("zero", "absent"), ("one", "present"), ("two", "unknown"),
        ]  # fmt: skip
        assert [bar.category for bar in card.models[0].missed] == ["nine"]
    assert len(sample_cards({"m": scores}, data, 100)) == 8
    assert sample_cards({"m": scores}, data, 0) == []


def test_no_image_has_more_than_two_cards():
    labels = np.full((2, 6), -1, np.int8)
    labels[:, 3:] = 1
    scores = np.where(labels < 0, 0.9, 0.1)
    wrong = worst_errors(scores, labels, np.full(6, 0.5), 6)
    rows = [case.row for cases in wrong for case in cases]
    assert sorted(rows) == [0, 0, 1, 1]
