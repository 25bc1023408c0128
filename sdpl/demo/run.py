"""The demo: the main path from data to measured bundle, on the embedded digit scenes.

Each step runs the command that a user would type; data and finished epochs are not made again.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sdpl.bundle import Bundle
from sdpl.data.formats import read_labels
from sdpl.data.images import LabelledImages
from sdpl.demo import tiny_clip
from sdpl.demo.scenes import SCENE_SIDE, write_coco
from sdpl.errors import Stopped, UserError
from sdpl.evaluate.evaluation import Evaluation, Scorer, evaluate, score_all
from sdpl.evaluate.report.figures import ap_bars
from sdpl.files import replace_folder, write_json, writing
from sdpl.manifest import Verification
from sdpl.pipeline import Pixels
from sdpl.plots import save_figure
from sdpl.runtime import Recognizer
from sdpl.runtime.bench import Latency, measure, summarize
from sdpl.runtime.environment import environment
from sdpl.targets import default_targets
from sdpl.train.checkpoint import load_checkpoint, restore_model

TRAIN_SCENES, TEST_SCENES = 1200, 400
PICTURES = 6
SECONDS = 2.0  # of each measurement
TOLD_S = 5  # in which a step ends that got our Ctrl-C too, as all of a terminal do
SHOWN = ("cpu:fp32", "cpu:int8")
CONFIG = Path(__file__).with_name("config.yaml")


def run(out: Path) -> None:
    """Everything the demo does, into the folder `out`."""
    console = Console()
    console.print(f"[bold]sdpl demo[/bold] into {out}: data, train, export, verify, predict, evaluate, measure")
    _prepare(out, console)
    checkpoint, bundle = out / "run" / "model.ckpt", out / "model.sdpl"
    resume = ["--resume"] if (out / "run" / "last.ckpt").exists() else []
    _command(console, "train", out / "config.yaml", "--out", out / "run", *resume)
    targets = [word for name in (*SHOWN, *_engines()) for word in ("--target", name)]
    _command(console, "export", checkpoint, "--out", bundle, *targets, "--calibrate", out / "data" / "train")
    _command(console, "info", bundle)
    annotations = out / "data" / "annotations" / "instances_test.json"
    test = read_labels(annotations)
    _command(console, "predict", bundle, *test.images[:PICTURES], "--attention", out / "attention")
    _command(console, "eval", bundle, annotations, "--report", out / "report.html")
    bench = ["--batch", "1,8", "--seconds", SECONDS, "--json", out / "bench.json", "--plot", out / "bench.png"]
    _command(console, "bench", bundle, "--backend", SHOWN[0], *bench)
    _summary(out, checkpoint, bundle, test, console)


def _engines() -> list[str]:
    """The engines that an export without --target would build here."""
    return [str(spec) for spec in default_targets() if str(spec) not in SHOWN]


def _prepare(out: Path, console: Console) -> None:
    """Data, encoder weights and configuration."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    data = out / "data"
    if not data.exists():
        console.print(f"composing {TRAIN_SCENES} + {TEST_SCENES} scenes from scikit-learn's handwritten digits")
        with replace_folder(data, lambda path: False) as folder:
            write_coco(folder, "train", TRAIN_SCENES, seed=1)
            write_coco(folder, "test", TEST_SCENES, seed=2)
    tiny_clip.unpack_weights(out / "tiny_clip.safetensors")
    shutil.copyfile(tiny_clip.CONFIG, out / "tiny_clip.json")
    shutil.copyfile(CONFIG, out / "config.yaml")


def _command(console: Console, *words: object) -> None:
    """Show a command as a user would type it, and run it."""
    console.print(f"\n[bold]$ sdpl {' '.join(str(word) for word in words)}[/bold]", soft_wrap=True)
    process = subprocess.Popen([sys.executable, "-m", "sdpl", *map(str, words)])
    try:
        status = process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise Stopped("interrupted; the same command goes on with what is left.") from None
    if status != 0:
        raise UserError(f"the demo's step `sdpl {words[0]}` failed (exit status {status}); the line above says why.")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let a step that was stopped with us clean up and say its line; one that was not told is told."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(TOLD_S)
        return
    process.terminate()
    process.wait()


def _summary(out: Path, checkpoint: Path, bundle: Path, test: LabelledImages, console: Console) -> None:
    """PyTorch and the bundle on all test scenes: accuracy, differences, latency, sizes; a table, JSON, a picture."""
    config, model = restore_model(load_checkpoint(checkpoint), str(checkpoint))
    scores, latency, sizes = {}, {}, {"PyTorch": checkpoint.stat().st_size}

    def look_at(name: str, scorer: Scorer, opened: Bundle) -> None:
        with console.status(f"scoring the test scenes with {name}"):
            scores[name] = score_all(scorer, test, Pixels(config.model.image_size), 16)
            latency[name] = _latency(scorer, opened)

    opened = Bundle.open(bundle)
    look_at("PyTorch", model.scorer(), opened)
    for name in SHOWN:
        with Recognizer.open(bundle, name) as recognizer:
            look_at(name, recognizer.scores, opened)
            sizes[name] = sum(opened.manifest.files[file].size for file in opened.manifest.targets[name].files.values())
            if name == SHOWN[0]:
                pointing, chance = pointing_accuracy(recognizer, test)
    results = {name: evaluate(values, test) for name, values in scores.items()}
    save_figure(ap_bars({name: result.ap for name, result in results.items()}), out / "ap.png")
    differences = {name: np.abs(scores["PyTorch"] - scores[name]) for name in SHOWN}  # [N,C]
    proofs = {name: opened.manifest.targets[name].proof() for name in SHOWN}
    chance_mAP = 100 * float((test.labels > 0).mean(axis=0).mean())
    rows = _rows(results, latency, sizes)
    rows.append(("largest score difference", "", *(f"{values.max():.1e}" for values in differences.values())))
    rows.append(("average score difference", "", *(f"{values.mean():.1e}" for values in differences.values())))
    rows.append(("largest in the proof", "", *(f"{proof.max_score_difference:.1e}" for proof in proofs.values())))
    rows.append(("limit of the proof", "", *(f"{proof.tolerance:.1e}" for proof in proofs.values())))
    rows.append(("mAP of random scores", f"{chance_mAP:.1f}", "", ""))
    rows.append((f"attention peak on the right digit (random: {chance:.0f} %)", "", f"{pointing:.0f} %", ""))
    table = Table(title=f"{len(test)} test scenes, {config.data.known_proportion:.0%} of the training labels known")
    for column in ("", *results):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in beyond_proof(proofs, {name: float(values.max()) for name, values in differences.items()}):
        console.print(line, soft_wrap=True, highlight=False)
    machine = environment()
    console.print(f"{machine['cpu']}, {machine['cores']} cores; torch {torch.__version__}, batch 1, model only")
    write_json(out / "summary.json", {"environment": {**machine, "torch": torch.__version__}, "rows": rows})
    console.print(
        f"look at {out / 'report.html'}, {out / 'attention'}/*.png, {out / 'ap.png'}, {out / 'bench.png'}; "
        f"numbers: {out / 'summary.json'}"
    )


def beyond_proof(proofs: dict[str, Verification], largest: dict[str, float]) -> list[str]:
    """A line for each target whose scores on the test scenes differ by more than its proof allows."""
    return [
        f"{name}: its proof holds for the {proof.images} held-out images of the checkpoint; on more images one "
        f"score may differ by more than the limit, as here. `sdpl export --images FOLDER` proves on your own."
        for name, proof in proofs.items()
        if largest[name] > proof.tolerance
    ]


def _rows(results: dict[str, Evaluation], latency: dict[str, Latency], sizes: dict[str, int]) -> list[tuple[str, ...]]:
    def row(name: str, pick: Callable[[str], str]) -> tuple[str, ...]:
        return name, *(pick(model) for model in results)

    return [
        row("mAP (%)", lambda m: f"{results[m].mAP:.2f}"),
        row("OF1 (%)", lambda m: f"{results[m].f1['OF1']:.2f}"),
        row("CF1 (%)", lambda m: f"{results[m].f1['CF1']:.2f}"),
        row("latency p50 (ms)", lambda m: f"{latency[m].p50_ms:.2f}"),
        row("latency p95 (ms)", lambda m: f"{latency[m].p95_ms:.2f}"),
        row("size (MB)", lambda m: f"{sizes[m] / 1e6:.1f}"),
    ]


def _latency(scorer: Scorer, bundle: Bundle) -> Latency:
    image = bundle.proof()[0][:1]  # [1,S,S,3]
    return summarize("model", 1, *measure(lambda: scorer(image), SECONDS))


def pointing_accuracy(recognizer: Recognizer, data: LabelledImages) -> tuple[float, float]:
    """Percent of the present categories whose attention peaks inside a box of that category, and what a peak
    at a random location would reach."""
    annotations = data.images[0].parent.parent / "annotations" / f"instances_{data.images[0].parent.name}.json"
    boxes: dict[tuple[int, int], list[list[float]]] = {}
    for a in json.loads(annotations.read_text(encoding="utf-8"))["annotations"]:
        boxes.setdefault((a["image_id"], a["category_id"] - 1), []).append(a["bbox"])
    attention: dict[int, np.ndarray] = {}
    for i, (_, scored) in enumerate(recognizer.stream(data.images, with_attention=True)):
        if isinstance(scored, UserError):
            raise scored
        assert scored.attention is not None  # asked for above
        attention[i] = scored.attention  # [C,h,w]
    hits, share = [], []
    for (image, category), found in boxes.items():
        inside = _cells_inside(found, attention[image][category].shape)  # [h,w]
        hits.append(inside.flat[attention[image][category].argmax()])
        share.append(inside.mean())
    return 100 * float(np.mean(hits)), 100 * float(np.mean(share))


def _cells_inside(boxes: list[list[float]], shape: tuple[int, ...]) -> np.ndarray:
    """Which cells of the map have their centre inside one of the boxes (x, y, width, height in pixels)."""
    y, x = ((np.arange(n) + 0.5) * SCENE_SIDE / n for n in shape)
    inside = [((by <= y) & (y < by + bh))[:, None] & ((bx <= x) & (x < bx + bw))[None, :] for bx, by, bw, bh in boxes]
    return np.asarray(np.any(inside, axis=0))
