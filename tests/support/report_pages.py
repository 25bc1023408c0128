"""The three kinds of report pages, whole: with pictures, several models, findings of every kind."""

from pathlib import Path

import numpy as np
from PIL import Image

from sdpl.data.check import check
from sdpl.data.images import LabelledImages
from sdpl.evaluate.evaluation import Evaluated, evaluate
from sdpl.evaluate.report.cases import ScoredModel
from sdpl.evaluate.report.data import write_data_report
from sdpl.evaluate.report.html import Compared, write_report
from sdpl.evaluate.report.training import write_training_report
from sdpl.evaluate.training import Attention, Epoch, Training

NAMES = ("person", "fire hydrant", "tennis racket", "cat", "dog")
THRESHOLDS = np.array([0.5, 0.25, 0.75, 0.5, 0.29])
EPOCHS = [Epoch(e, 0.1 / e, 5 / e, 10.0 * e) for e in range(1, 7)]


def labelled(folder: Path, seed: int, names: tuple[str, ...] = NAMES) -> LabelledImages:
    """Eight pictures of noise with random labels, some unknown."""
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{seed}-{i}.jpg" for i in range(8))
    for path in paths:
        Image.fromarray(random.randint(0, 256, (60, 80, 3), np.uint8)).save(path)
    labels = random.choice([-1, 0, 1], (8, len(names))).astype(np.int8)
    labels[0], labels[1] = 1, -1
    return LabelledImages(paths, labels, names)


def evaluation_page(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    data = labelled(folder / "evaluated", 1, names)
    thresholds = np.resize(THRESHOLDS, len(names))

    def attention(images: np.ndarray) -> tuple[None, np.ndarray]:
        return None, np.tile(np.array([[0.7, 0.1], [0.1, 0.1]], np.float32), (len(images), len(names), 1, 1))

    model = Evaluated(None, attention, names, 32, thresholds, "PyTorch")
    scores = np.random.RandomState(2).uniform(size=data.labels.shape)
    result = evaluate(scores, data, thresholds)
    other = Compared("other.ckpt", result, ScoredModel("other.ckpt", model, scores[:, ::-1]))
    write_report(folder / "r.html", "model.ckpt", "labels.csv", model, data, scores, result, 3, [other], EPOCHS)
    return folder / "r.html"


def training_page(folder: Path) -> Path:
    train, val = labelled(folder / "train", 1), labelled(folder / "val", 2)
    cases = ((0, 1), (0, 2), (3, 0))
    maps = np.tile(np.array([[0.7, 0.1], [0.1, 0.1]], np.float32), (3, 1, 1))
    ap = [{name: 10.0 * e + c if c else None for c, name in enumerate(NAMES)} for e in range(1, 7)]
    snapshots = tuple(Attention(e, cases, maps) for e in (0, 1, 2, 3, 4, 6))
    facts = ("data: 8 images", "model: RN50")
    run = Training("out", 6, EPOCHS, ap, 4, "the best", 5.0, "3 min", facts, train, val, snapshots)
    write_training_report(folder / "r.html", run)
    return folder / "r.html"


def data_page(folder: Path) -> Path:
    train, val = labelled(folder / "train", 1), labelled(folder / "val", 2)
    train.labels[2], train.labels[:, 3] = 0, np.minimum(train.labels[:, 3], 0)
    train.images[4].write_bytes(b"x")
    val.images[5].write_bytes(train.images[0].read_bytes())
    train.images[6].write_bytes(train.images[7].read_bytes())
    splits = {"train.csv": train, "val.csv": val}
    write_data_report(folder / "r.html", splits, check(splits))
    return folder / "r.html"


PAGES = {"evaluation": evaluation_page, "training": training_page, "data": data_page}
