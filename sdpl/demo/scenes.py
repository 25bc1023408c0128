"""Digit scenes: multi-label pictures composed from scikit-learn's real handwritten digits.

Each scene holds one to four handwritten digits at different sizes, places, angles and inks on a textured
background. The ten categories are confusable (3/8, 1/7, 4/9). A digit instance belongs to exactly one
split, so a test scene never shows a digit that training has seen.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

CATEGORIES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCENE_SIDE = 192  # pixels
TEST_FRACTION = 1 / 3
Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Difficulty:
    """What makes the digits of a scene hard to see."""

    digit_sides: tuple[int, int] = (44, 80)  # pixels, smallest and largest
    contrast: float = 70  # least difference of luminance between ink and background, of 255
    strokes: int = 4  # of clutter, at most


EASY = Difficulty()
HARD = Difficulty(digit_sides=(36, 66), contrast=50, strokes=10)


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    digits: tuple[int, ...]
    boxes: tuple[Box, ...]  # one per digit


def digit_instances(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits of one split: pictures float [N,8,8] in 0..1 and their classes int [N].

    The split is drawn once, per class, with a fixed seed: "train" and "test" share no instance.
    """
    pictures, classes = load_digits(return_X_y=True)
    in_test = np.zeros(len(classes), dtype=bool)
    rng = np.random.RandomState(0)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(classes == digit))
        in_test[members[: int(len(members) * TEST_FRACTION)]] = True
    chosen = in_test if split == "test" else ~in_test
    return pictures[chosen].reshape(-1, 8, 8) / 16.0, classes[chosen]


def _texture(rng: np.random.RandomState, side: int, strokes: int) -> Image.Image:
    """A coloured background: noise at three scales, and up to `strokes` strokes as clutter.

    Composed at half the side and enlarged, which is both faster and smoother.
    """
    half = side // 2
    channels = []
    for base in rng.uniform(40, 215, 3):
        noise = np.zeros((half, half), np.float32)
        for cells, strength in ((3, 26), (12, 14), (48, 8)):
            noise += np.asarray(
                Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32)).resize(
                    (half, half), Image.Resampling.BICUBIC
                )
            )
        channels.append(Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)))
    picture = Image.merge("RGB", channels).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(0, strokes + 1)):
        points = [tuple(p) for p in rng.randint(0, side, (2, 2)).tolist()]
        draw.line(points, fill=tuple(rng.randint(0, 256, 3).tolist()), width=int(rng.randint(1, 4)))
    return picture


def _ink(rng: np.random.RandomState, background: np.ndarray, contrast: float) -> tuple[int, int, int]:
    """A colour whose luminance differs from the background's by at least `contrast` of 255."""
    luma = np.array([0.299, 0.587, 0.114])
    under = float(background.reshape(-1, 3).mean(0) @ luma)
    while True:
        colour = rng.randint(0, 256, 3)
        if abs(float(colour @ luma) - under) >= contrast:
            return tuple(colour.tolist())


def _place(rng: np.random.RandomState, scene_side: int, side: int, taken: list[Box]) -> Box | None:
    """A box of this side that no earlier box overlaps by more than a tenth of the side, or None."""
    slack = side // 10
    for _ in range(30):
        x, y = rng.randint(0, scene_side - side + 1, 2).tolist()
        apart = (
            x + side - slack <= bx or bx + bw - slack <= x or y + side - slack <= by or by + bh - slack <= y
            for bx, by, bw, bh in taken
        )
        if all(apart):
            return x, y, side, side
    return None


def compose(
    rng: np.random.RandomState,
    pictures: np.ndarray,
    classes: np.ndarray,
    side: int = SCENE_SIDE,
    most: int = 4,
    difficulty: Difficulty = EASY,
) -> Scene:
    """One scene, `side` pixels square, of 1 to `most` of the given digits: pictures [N,8,8], classes [N]."""
    scene = _texture(rng, side, difficulty.strokes)
    smallest, largest = difficulty.digit_sides
    digits: list[int] = []
    boxes: list[Box] = []
    for _ in range(rng.randint(1, most + 1)):
        box = _place(rng, side, min(side, int(rng.randint(smallest, largest + 1))), boxes)
        if box is None:
            continue
        x, y, width, _ = box
        which = rng.randint(len(classes))
        strokes = Image.fromarray((pictures[which] * 255).astype(np.uint8)).resize(
            (width, width), Image.Resampling.BICUBIC
        )
        strokes = strokes.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC)
        under = np.asarray(scene.crop((x, y, x + width, y + width)))
        scene.paste(Image.new("RGB", (width, width), _ink(rng, under, difficulty.contrast)), (x, y), strokes)
        digits.append(int(classes[which]))
        boxes.append(box)
    return Scene(scene, tuple(digits), tuple(boxes))


def scenes(split: str, count: int, seed: int, difficulty: Difficulty = EASY) -> Iterator[Scene]:
    """`count` scenes of one split; the same arguments give the same pictures."""
    pictures, classes = digit_instances(split)
    rng = np.random.RandomState(seed)
    for _ in range(count):
        yield compose(rng, pictures, classes, difficulty=difficulty)


def write_coco(folder: Path, split: str, count: int, seed: int, difficulty: Difficulty = EASY) -> Path:
    """Write scenes as JPEG files with COCO-style annotations; returns the annotation file.

    `<folder>/<split>/NNNNNN.jpg` and `<folder>/annotations/instances_<split>.json`.
    """
    images_folder = folder / split
    images_folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes(split, count, seed, difficulty)):
        name = f"{image_id:06d}.jpg"
        scene.image.save(images_folder / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": SCENE_SIDE, "height": SCENE_SIDE})
        for digit, box in zip(scene.digits, scene.boxes, strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": digit + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return path
