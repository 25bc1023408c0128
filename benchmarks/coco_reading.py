"""Reading COCO annotations: peak memory and time of `read_labels`, beside what else could read them.

    python benchmarks/coco_reading.py WORK [--repeats 3] [--out docs/benchmarks/coco_reading.json]

The file is made, seeded, into WORK and stays there: as many images, annotations and categories as instances_train2014
has, with polygons that make it as large as `--megabytes` says. Each side reads it in a process of its own, in turns.
Peak memory is the process's own (VmHWM of Linux), with the interpreter and what it imports; "imports" is a process that
only imports. "pydantic" is how sdpl read the file before; ijson goes through it three times, since
images, annotations and categories may come in any order; it is left out where it is not installed.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

IMAGES, ANNOTATIONS, CATEGORIES = 82_783, 604_907, 80
HEAD = "import time, sys\nfrom sdpl.data.formats import read_labels\nbegan = time.perf_counter()\n"
TAIL = """
seconds = time.perf_counter() - began
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(seconds, int(peak.split()[1]) / 1e3, found)
"""
SIDES = {  # each says how many labels are present, as a check
    "imports": "found = 0",
    "read_labels": "found = int((read_labels(sys.argv[1], require_images=False).labels > 0).sum())",
    "json.load": """
import json
with open(sys.argv[1], "rb") as stream:
    content = json.load(stream)
found = len({(a["image_id"], a["category_id"]) for a in content["annotations"]})
""",
    "pydantic": """
import pydantic, pathlib
Image = pydantic.create_model("Image", id=int, file_name=str)
Annotation = pydantic.create_model("Annotation", image_id=int, category_id=int)
Category = pydantic.create_model("Category", id=int, name=str)
File = pydantic.create_model("File", images=list[Image], annotations=list[Annotation], categories=list[Category])
content = File.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes())
found = len({(a.image_id, a.category_id) for a in content.annotations})
""",
    "ijson": """
import ijson
found = set()
for part in ("images.item", "categories.item", "annotations.item"):
    with open(sys.argv[1], "rb") as stream:
        for item in ijson.items(stream, part, use_float=True):
            if "image_id" in item:
                found.add((item["image_id"], item["category_id"]))
found = len(found)
""",
}


def write_file(path: Path, megabytes: float, seed: int = 0) -> None:
    """A file of COCO's shape: the annotations follow the images, and precede the categories, as in COCO's own."""
    random = np.random.default_rng(seed)
    share = (megabytes * 1e6 - 260 * IMAGES) / ANNOTATIONS  # bytes of an annotation
    mean = max(3.0, (share - 190) / 14.2)  # points of its polygon, on the average
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as stream:
        stream.write('{"info": {"description": "synthetic", "year": 2014}, "images": [')
        for i in range(IMAGES):
            name = f"COCO_train2014_{i:012d}.jpg"
            image = {"license": 5, "file_name": name, "coco_url": f"http://images.invalid/train2014/{name}",
                     "height": 480, "width": 640, "date_captured": "2013-11-14 16:28:13",
                     "flickr_url": f"http://farm4.invalid/3153/{i:010d}_88000000_z.jpg", "id": 7 * i}  # fmt: skip
            stream.write(", " * (i > 0) + json.dumps(image))
        stream.write('], "annotations": [')
        for i in range(ANNOTATIONS):
            points = random.integers(3, int(2 * mean) - 2)
            polygon = np.round(random.uniform(0, 640, 2 * points), 2).tolist()
            box = np.round(random.uniform(0, 480, 4), 2).tolist()
            annotation = {"segmentation": [polygon], "area": float(box[2] * box[3]), "iscrowd": 0,
                          "image_id": 7 * int(random.integers(IMAGES)), "bbox": box,
                          "category_id": int(random.integers(1, CATEGORIES + 1)), "id": i}  # fmt: skip
            stream.write(", " * (i > 0) + json.dumps(annotation))
        names = [{"supercategory": "thing", "id": c + 1, "name": f"category {c}"} for c in range(CATEGORIES)]
        stream.write(f'], "categories": {json.dumps(names)}}}')
    os.replace(part, path)


def measure(side: str, path: Path) -> tuple[float, float, int]:
    """Seconds, peak megabytes, and the number of labels that are present."""
    command = [sys.executable, "-c", HEAD + SIDES[side] + TAIL, str(path)]
    seconds, peak, found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak), int(found)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--megabytes", type=float, default=450, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(work: Path, megabytes: float, repeats: int, out: Path | None) -> None:
    from sdpl.files import write_json
    from sdpl.runtime.environment import environment

    work.mkdir(parents=True, exist_ok=True)
    path = work / f"instances_{megabytes:g}.json"
    if not path.exists():
        write_file(path, megabytes)
    sides = [side for side in SIDES if side != "ijson" or find_spec("ijson") is not None]
    runs: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, found in runs.items():
            found.append(measure(side, path))
            print(side, found[-1], flush=True)
    counts = {found for side, own in runs.items() if side != "imports" for _, _, found in own}
    if len(counts) != 1:
        raise SystemExit(f"the sides read different labels: {counts}")
    rows: dict[str, Any] = {
        side: {
            "seconds": statistics.median(seconds for seconds, _, _ in own),
            "peak_mb": max(peak for _, peak, _ in own),
        }
        for side, own in runs.items()
    }
    if out is not None:
        file = {"bytes": path.stat().st_size, "images": IMAGES, "annotations": ANNOTATIONS, "present": counts.pop()}
        versions = {name: version(name) for name in ("msgspec", "pydantic", "ijson") if find_spec(name) is not None}
        write_json(out, {"environment": {**environment(), **versions}, "file": file, "repeats": repeats, "sides": rows})


if __name__ == "__main__":
    main()
