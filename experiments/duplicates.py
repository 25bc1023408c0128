"""How far apart the thumbnails of copies and of different photos are: what `sdpl.data.check.SAME` rests on.

    python experiments/duplicates.py PHOTOS --out docs/benchmarks/duplicates.json

PHOTOS is a folder of different photos. Each is copied as people and tools do, and compared with its original; all
photos are compared with each other. Distances are root mean squares over the thumbnail, of 255.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from sdpl.data.check import SAME, THUMBNAIL, thumbnail
from sdpl.preprocess import find_images, load_image
from sdpl.runtime.environment import environment


def encoded(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((int(image.width * factor), int(image.height * factor)))


COPIES = {
    "PNG of the same pixels": lambda image: encoded(image, format="PNG"),
    "JPEG, quality 50": lambda image: encoded(image, format="JPEG", quality=50),
    "half the side, JPEG 85": lambda image: encoded(scaled(image, 0.5), format="JPEG", quality=85),
    "a quarter of the side, JPEG 70": lambda image: encoded(scaled(image, 0.25), format="JPEG", quality=70),
    "2 % cut off at the top and the left": lambda image: encoded(
        image.crop((image.width // 50, image.height // 50, image.width, image.height)), format="JPEG", quality=85
    ),
}


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a - b).mean(axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    paths = find_images([arguments.photos])
    originals = np.stack([thumbnail(path) for path in paths])  # [N,192]
    between = distances(originals[:, None], originals[None])[np.triu_indices(len(paths), 1)]
    result = {
        "environment": {**environment(), "pillow": PIL.__version__},
        "photos": len(paths),
        "thumbnail": f"{THUMBNAIL}x{THUMBNAIL}",
        "same below": SAME,
        "different photos": {"pairs": len(between), "smallest": round(float(between.min()), 2)},
        "copies": {},
    }
    for name, copy in COPIES.items():
        copies = np.stack([thumbnail(copy(load_image(path))) for path in paths])
        found = distances(originals, copies)
        result["copies"][name] = {
            "median": round(float(np.median(found)), 2),
            "largest": round(float(found.max()), 2),
            "found": round(float((found < SAME).mean()), 3),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
