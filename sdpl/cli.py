"""The commands. A part is imported only inside the command that needs it, so that --help is instant."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from sdpl import __version__
from sdpl.errors import UserError

PATH = click.Path(path_type=Path)
EXTRAS = {  # which extra brings a module
    "array_api_compat": "train",
    "matplotlib": "pictures",
    "onnx": "export",
    "onnxruntime": "runtime",
    "onnxscript": "export",
    "open_clip": "train",
    "sklearn": "eval",
    "torch": "train",
    "yaml": "train",
}


class Command(click.Command):
    """A command whose UserErrors are printed as one line, with exit status 2."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            click.echo(f'error: this command needs {error.name}: pip install "sdpl[{extra}]"', err=True)
            ctx.exit(2)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)


class Group(click.Group):
    command_class = Command


@click.group(cls=Group)
@click.version_option(__version__, prog_name="sdpl")
def main() -> None:
    """Multi-label image recognition with partial labels, from training to production."""


@main.command()
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for checkpoints and log; made if missing.")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.ckpt.")
def train(config: Path, out: Path, resume: bool) -> None:
    """Train as CONFIG (YAML) says; writes OUT/model.ckpt (best), OUT/last.ckpt and OUT/log.csv."""
    from sdpl.train.config import read_config
    from sdpl.train.loop import train

    try:
        best = train(read_config(config), out, resume)
    except KeyboardInterrupt:
        kept = (out / "last.ckpt").exists()
        mend = f"add --resume to go on from the last finished epoch in {out}" if kept else "no epoch was finished"
        raise UserError(f"interrupted; {mend}.") from None
    click.echo(f"best checkpoint: {best}")


@main.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, help="The bundle to write.  [default: CHECKPOINT with suffix .sdpl]")
@click.option("--images", type=PATH, multiple=True, help="Verify on these images or folders, not the held-out ones.")
def export(checkpoint: Path, out: Path | None, images: tuple[Path, ...]) -> None:
    """Export CHECKPOINT as a bundle that runs without PyTorch, and prove that it gives the same scores."""
    from rich.console import Console

    from sdpl.export.build import export
    from sdpl.preprocess import find_images

    out = out or checkpoint.parent / f"{checkpoint.stem}.sdpl"
    paths = find_images(list(images)) if images else None
    console = Console(stderr=True)
    with console.status("reading the checkpoint") as status:
        proof = export(checkpoint, out, paths, lambda step: (console.print(step), status.update(step)))
    click.echo(
        f"verified on {proof.images} images: scores differ by at most {proof.max_score_difference:.1e}, "
        f"{proof.mean_score_difference:.1e} on average (tolerance {proof.tolerance:.0e}); "
        f"same {proof.top_k} best on {proof.same_top_k:.0%}"
    )


@main.command(name="eval")
@click.argument("model", type=PATH)
@click.argument("annotations", type=PATH)
@click.option("--images", type=PATH, help="Folder of the images.  [default: where COCO keeps them]")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--threshold", type=click.FloatRange(0, 1), help="For F1.  [default: the model's own, or 0.5]")
@click.option("--json", "json_path", type=PATH, help="Also write the metrics to this file.")
def evaluate(
    model: Path, annotations: Path, images: Path | None, batch: int, threshold: float | None, json_path: Path | None
) -> None:
    """Metrics of MODEL (model.ckpt or model.sdpl) on COCO-format ANNOTATIONS."""
    from rich.console import Console
    from rich.progress import Progress

    from sdpl.files import replace_file
    from sdpl.train.data import read_coco
    from sdpl.train.evaluate import evaluate, require_categories, score_all
    from sdpl.train.report import tables

    data = read_coco(annotations, images)
    scorer, categories, image_size, thresholds = _scorer(model)
    data = require_categories(data, categories, str(annotations))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=len(data))
        scores = score_all(scorer, data, image_size, batch, lambda done: progress.advance(task, done))
    result = evaluate(scores, data, thresholds if threshold is None else threshold)
    for table in tables(result):
        Console().print(table)
    if json_path is not None:
        with replace_file(json_path) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=2) + "\n")


def _scorer(model: Path):
    """What scores a batch of this model, its categories, image size and thresholds."""
    import numpy as np

    if model.is_dir() or model.suffix == ".sdpl":
        from sdpl.runtime import Recognizer

        recognizer = Recognizer.open(model)
        thresholds = np.array(recognizer.bundle.manifest.thresholds)
        return recognizer.scores, recognizer.categories, recognizer.image_size, thresholds
    from sdpl.train.checkpoint import load_checkpoint, restore_model

    config, network = restore_model(load_checkpoint(model), str(model))
    return network.scorer(), network.categories, config.model.image_size, 0.5


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print every score as JSON, one line per image.")
@click.option("--top", type=click.IntRange(min=1), help="Print the K best categories instead of those above threshold.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="For all categories.  [default: the bundle's own]")
@click.option("--attention", type=PATH, help="Draw where the model looked, one PNG per image, into this folder.")
@click.option("--backend", default="auto", show_default=True)
def predict(bundle, images, as_json, top, threshold, attention, backend) -> None:
    """Labels and scores of IMAGES (files or folders). Unreadable images are named; the others are still done."""
    from sdpl.preprocess import find_images
    from sdpl.runtime import Recognizer
    from sdpl.runtime.predict import attention_names, draw, predict

    paths = find_images(list(images))
    failed = 0
    with Recognizer.open(bundle, backend) as recognizer:
        predictions = predict(recognizer, paths, threshold, with_attention=attention is not None)
        for prediction, name in zip(predictions, attention_names(paths), strict=True):
            if isinstance(prediction, UserError):
                click.echo(f"error: {prediction}", err=True)
                failed += 1
                continue
            click.echo(prediction.to_json() if as_json else prediction.to_line(top))
            if attention is not None:
                draw(prediction, top or 3, attention / name)
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read.")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--batch", "batches", default="1,2,4,8", show_default=True, help="Batch sizes, comma-separated.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, help="Per row.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores used by one call.  [default: all]")
@click.option("--backend", default="auto", show_default=True)
@click.option("--json", "json_path", type=PATH, help="Also write the numbers to this file.")
def bench(bundle, batches, seconds, threads, backend, json_path) -> None:
    """Latency and throughput of BUNDLE: from pixels in memory, and end to end from JPEG bytes."""
    from rich.console import Console

    from sdpl.files import replace_file
    from sdpl.runtime import Recognizer
    from sdpl.runtime.bench import benchmark, table, to_json

    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 1024:
        raise UserError(f"--batch {batches!r}: expected batch sizes up to 1024, such as 1,8,32.")
    console = Console(stderr=True)
    with Recognizer.open(bundle, backend, threads) as recognizer, console.status("measuring") as status:
        rows = benchmark(recognizer, sizes, seconds, lambda r: status.update(f"{r.boundary}, batch {r.batch}: done"))
        result = to_json(recognizer, rows)
    Console().print(table(result))
    if not all(row.stable for row in rows):
        click.echo("not stable: rows marked * spread more than 10 % around their median; quiet the machine and repeat.")
    if json_path is not None:
        with replace_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


@main.command()
@click.option("--out", type=PATH, default=Path("demo-run"), show_default=True, help="Folder for everything it makes.")
def demo(out: Path) -> None:
    """Train, export, verify, predict and measure on the embedded digit scenes. Finished epochs are not repeated."""
    from sdpl.demo.run import run

    run(out)
