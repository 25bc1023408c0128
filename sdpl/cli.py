"""The commands. A part is imported only inside the command that needs it, so that --help is instant."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from sdpl import __version__
from sdpl.command import Group
from sdpl.errors import UserError

PATH = click.Path(path_type=Path)
IMAGES = click.option("--images", type=PATH, help="Folder of the images.  [default: where the format keeps them]")
FORMAT = click.option(
    "--format",
    type=click.Choice(["auto", "coco", "voc", "csv", "jsonl", "parquet"]),
    default="auto",
    show_default=True,
    help="Of the label file, where its name does not say it.",
)


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
        mend = f"add --resume to go on from the last checkpoint in {out}" if kept else "no epoch was finished"
        raise UserError(f"interrupted; {mend}.") from None
    click.echo(f"best checkpoint: {best}")


@main.command()
@click.argument("sweep", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the runs, the table and the curves.")
def sweep(sweep: Path, out: Path) -> None:
    """Train every method of SWEEP (YAML) at every proportion of known labels with every seed; one table at the end.

    Finished runs are not repeated: the same command goes on after a stop. Writes OUT/results.json, OUT/table.md and
    curves over the proportions as PNG.
    """
    from rich.console import Console

    from sdpl.files import replace_file
    from sdpl.train.config import read_sweep
    from sdpl.train.sweep import run_sweep
    from sdpl.train.sweep_report import draw_curves, markdown, table

    config = read_sweep(sweep)
    try:
        results = run_sweep(config, out, Console(stderr=True))
    except KeyboardInterrupt:
        raise UserError(f"interrupted; the same command goes on with what is left in {out}.") from None
    with replace_file(out / "results.json") as temporary:
        temporary.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    with replace_file(out / "table.md") as temporary:
        temporary.write_text(markdown(results))
    for name, methods in (config.figures or {"curves": tuple(config.methods)}).items():
        draw_curves(results, methods, out / f"{name}.png")
    Console().print(table(results, f"{len(results)} runs, test split, percent"))


@main.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, help="The bundle to write.  [default: CHECKPOINT with suffix .sdpl]")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="What to export for; may be repeated: cpu:fp32, cpu:int8, cuda:fp16, rtx:sm86:fp16, tensorrt:fp16 and more.  "
    "[default: cpu:fp32, and rtx:sm86:fp16 where TensorRT-RTX is installed]",
)
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes of engines.")
@click.option(
    "--head",
    type=click.Choice(["exact", "separable"]),
    default="exact",
    show_default=True,
    help="separable: a matrix product in place of the loop over categories, for cpu targets with thousands of them.",
)
@click.option("--calibrate", type=PATH, multiple=True, help="Images or folders for int8 and the separable head.")
@click.option("--images", type=PATH, multiple=True, help="Verify on these images or folders, not the held-out ones.")
@click.option("--eval", "annotations", type=PATH, help="Labelled data on which mAP is compared too.")
@click.option("--eval-images", type=PATH, help="Folder of that data's images.  [default: where COCO keeps them]")
@click.option("--max-score-diff", type=click.FloatRange(min=0), help="Largest difference of a score.")
@click.option("--max-map-drop", type=click.FloatRange(min=0), help="Largest loss of mAP in points (with --eval).")
def export(
    checkpoint, out, targets, batch, head, calibrate, images, annotations, eval_images, max_score_diff, max_map_drop
) -> None:
    """Export CHECKPOINT as a bundle that runs without PyTorch, and prove that it gives the same scores.

    Given a bundle in place of the checkpoint, builds engines from its own graphs and adds them to it; needs no PyTorch.
    """
    from rich.console import Console

    from sdpl.export.targets import parse_targets
    from sdpl.export.verify import Limits
    from sdpl.preprocess import find_images
    from sdpl.proof import describe
    from sdpl.runtime.verify import run_here
    from sdpl.train.formats import read_labels

    specs, profile, limits = parse_targets(targets), _profile(batch), Limits(max_score_diff, max_map_drop)
    console = Console(stderr=True)

    def show(make, *arguments) -> None:
        with console.status("reading") as status:
            made = make(*arguments, lambda step: (console.print(step), status.update(step)), run_here)
        for name, target in made.items():
            click.echo(f"{name}: {target.status}; {describe(target.verification)}")

    if checkpoint.is_dir():
        from sdpl.export.engines import add_engines

        given = {"--out": out, "--images": images, "--calibrate": calibrate, "--eval": annotations}
        given |= {"--eval-images": eval_images, "--head": head != "exact", "--max-map-drop": max_map_drop}
        for option in (name for name, value in given.items() if value):
            raise UserError(f"{option} needs a checkpoint: a bundle only gets more engines, in its place.")
        if not targets:
            raise UserError(f"{checkpoint} is a bundle: name the engine to add with --target, such as rtx:sm89:fp16.")
        show(add_engines, checkpoint, specs, profile, limits)
        return
    from sdpl.export.build import Options, export

    options = Options(
        targets=specs,
        head=head,
        profile=profile,
        images=find_images(list(images)) if images else None,
        calibrate=find_images(list(calibrate)) if calibrate else None,
        evaluation=read_labels(annotations, eval_images) if annotations else None,
        limits=limits,
    )
    show(export, checkpoint, out or checkpoint.parent / f"{checkpoint.stem}.sdpl", options)


def _profile(text: str):
    """The batch profile of --batch."""
    from sdpl.bundle import Profile

    try:
        low, best, high = (int(part) for part in text.split(":"))
        return Profile(min=low, opt=best, max=high)
    except ValueError:
        raise UserError(
            f"--batch {text!r}: expected MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, such as 1:8:64."
        ) from None


@main.command(name="eval")
@click.argument("model", type=PATH)
@click.argument("annotations", type=PATH)
@IMAGES
@FORMAT
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--threshold", type=click.FloatRange(0, 1), help="For F1.  [default: the model's own, or 0.5]")
@click.option("--skip-unreadable", is_flag=True, help="Name unreadable images and leave them out, instead of stopping.")
@click.option("--json", "json_path", type=PATH, help="Also write the metrics to this file.")
@click.option("--report", type=PATH, help="Also write an HTML page with curves, pictures of the worst errors and more.")
@click.option("--worst", type=click.IntRange(0, 200), default=12, show_default=True, help="Pictures per part of it.")
def evaluate(model, annotations, images, format, batch, threshold, skip_unreadable, json_path, report, worst) -> None:
    """Metrics of MODEL (model.ckpt or model.sdpl) on the labels of ANNOTATIONS: COCO, VOC or a table."""
    from rich.console import Console
    from rich.progress import Progress

    from sdpl.files import replace_file
    from sdpl.train.data import Unreadable
    from sdpl.train.evaluate import evaluate, score_all
    from sdpl.train.formats import read_labels
    from sdpl.train.report import evaluation_tables

    if report is not None:
        from sdpl.report.html import write_report  # before hours of scoring, should it not be installed
    evaluated = _evaluated(model, threshold)
    data = read_labels(annotations, images, format, evaluated.categories)
    console = Console(stderr=True)
    say = partial(console.print, markup=False, soft_wrap=True)
    unreadable = Unreadable("skip" if skip_unreadable else "stop", say, "--skip-unreadable leaves it out.")
    with Progress(console=console) as progress:
        task = progress.add_task("scoring", total=len(data))
        scores = score_all(
            evaluated.scores, data, evaluated.image_size, batch, lambda done: progress.advance(task, done), unreadable
        )
    data = data.without(unreadable.images)
    result = evaluate(scores, data, evaluated.thresholds)
    for table in evaluation_tables(result):
        Console().print(table)
    if json_path is not None:
        with replace_file(json_path) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=2) + "\n")
    if report is not None:
        with console.status("drawing the report"):
            write_report(report, str(model), str(annotations), evaluated, data, scores, result, worst)
        click.echo(f"report: {report}")


def _evaluated(model: Path, threshold: float | None):
    """The model to evaluate, with one threshold for all categories if it is given."""
    import numpy as np

    from sdpl.train.evaluate import Evaluated

    if model.is_dir() or model.suffix == ".sdpl":
        from sdpl.runtime import Recognizer

        recognizer = Recognizer.open(model)
        own = recognizer.bundle.manifest.thresholds
        thresholds = np.array(own if threshold is None else [threshold] * len(own))
        return Evaluated(
            recognizer.scores, recognizer.attention, recognizer.categories, recognizer.image_size, thresholds
        )
    from sdpl.train.checkpoint import load_checkpoint, restore_model

    content = load_checkpoint(model)
    config, network = restore_model(content, str(model))
    own = content["thresholds"]
    thresholds = np.array(own if threshold is None else [threshold] * len(own))
    return Evaluated(network.scorer(), network.attention, network.categories, config.model.image_size, thresholds)


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
@click.option("--callers", default="1", show_default=True, help="Threads calling at once, comma-separated.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, help="Per row.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores used by one call.  [default: all]")
@click.option("--backend", default="auto", show_default=True, help="A backend or a target of the bundle.")
@click.option("--against", type=PATH, help="Also measure this checkpoint in PyTorch: eager, channels_last, compiled.")
@click.option("--json", "json_path", type=PATH, help="Also write the numbers to this file.")
@click.option("--plot", type=PATH, help="Also draw throughput over latency to this PNG file.")
def bench(bundle, batches, callers, seconds, threads, backend, against, json_path, plot) -> None:
    """Latency and throughput of BUNDLE: on the device, from pixels in memory, and end to end from JPEG bytes."""
    from rich.console import Console

    from sdpl.files import replace_file
    from sdpl.runtime import Recognizer
    from sdpl.runtime.bench import Inputs, benchmark, to_json
    from sdpl.runtime.tables import draw_latencies, latency_table

    sizes, threads_at_once = _numbers("--batch", batches), _numbers("--callers", callers)
    sides = {}
    if against is not None:
        from sdpl.train.against import pytorch_scorers

        sides = pytorch_scorers(against)
    rows = []
    console = Console(stderr=True)
    with Recognizer.open(bundle, backend, threads) as recognizer, console.status("measuring") as status:
        inputs = Inputs(recognizer.bundle)
        on_device = getattr(recognizer.backend, "on_device", None)
        for side, scorer in {"sdpl": recognizer.scores, **sides}.items():
            device = (on_device, recognizer.backend.batch_sizes[-1]) if on_device and side == "sdpl" else ()
            for row in benchmark(side, scorer, inputs, sizes, threads_at_once, seconds, *device):
                rows.append(row)
                status.update(f"{side}, {row.boundary}, batch {row.batch}: done")
            recognizer.close()  # waiting threads of one library slow the next one down
        result = to_json(recognizer, rows)
    Console().print(latency_table(result))
    for target, obstacle in result["passed_over"].items():
        click.echo(f"passed over {target}: {obstacle}")
    if not all(row.stable for row in rows):
        click.echo("not stable: rows marked * spread or drift by more than 10 %; quiet the machine and repeat.")
    if json_path is not None:
        with replace_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    if plot is not None:
        draw_latencies(result, plot)


def _numbers(option: str, text: str) -> list[int]:
    """Numbers from 1 to 1024, comma-separated."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > 1024:
        raise UserError(f"{option} {text!r}: expected numbers up to 1024, such as 1,8,32.")
    return numbers


@main.command()
@click.argument("bundle", type=PATH)
def verify(bundle: Path) -> None:
    """Repeat BUNDLE's proof on this machine: every target that runs here against PyTorch's scores on its images.

    The results go into the manifest.
    """
    from rich.console import Console

    from sdpl.bundle import Verification
    from sdpl.proof import describe
    from sdpl.runtime.verify import verify

    def say(name: str, result: Verification | str) -> None:
        line = describe(result) if isinstance(result, Verification) else f"not run: {result}"
        click.echo(f"{name}: {line}")

    with Console(stderr=True).status("running the proof"):
        results = verify(bundle, say)
    if not any(isinstance(result, Verification) for result in results.values()):
        raise UserError("nothing was verified: no target of the bundle runs here.")


@main.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(bundle: Path | None, as_json: bool) -> None:
    """What runs on this machine, what is missing, and whether the targets of BUNDLE fit it."""
    from rich.console import Console

    from sdpl.bundle import Bundle
    from sdpl.runtime.environment import describe
    from sdpl.runtime.tables import environment_table, target_table
    from sdpl.runtime.usable import target_obstacle

    opened = Bundle.open(bundle) if bundle else None
    if as_json:
        targets = opened.manifest.targets if opened else {}
        here = {n: {"status": t.status, "here": target_obstacle(opened, n) or "usable"} for n, t in targets.items()}
        click.echo(json.dumps({"environment": describe(), "targets": here}, indent=2))
        return
    Console().print(environment_table(describe()))
    if opened:
        Console().print(target_table(opened))


@main.command()
@click.option("--out", type=PATH, default=Path("demo-run"), show_default=True, help="Folder for everything it makes.")
def demo(out: Path) -> None:
    """Train, export, verify, predict and measure on the embedded digit scenes. Finished epochs are not repeated."""
    from sdpl.demo.run import run

    run(out)


@main.group(cls=Group)
def data() -> None:
    """Look at label files before training, and make partial-label sets."""


@data.command(name="check")
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.option("--images", type=PATH, multiple=True, help="Folder of the images, once for each of LABELS.")
@FORMAT
@click.option("--json", "json_path", type=PATH, help="Also write everything found to this file.")
def check_data(labels, images, format, json_path) -> None:
    """Count labels, open every image, find copies.

    LABELS are the label files of a training set and then of its other splits, or one training configuration (.yaml).
    Counts what is known of each category, opens every image, and looks for copies of pictures within and across the
    splits. Exit status 1 if there are problems: an unreadable image, a picture in two splits, a training category of
    which nothing is known. Labels are counted as the files have them, before data.known_proportion hides any.
    """
    from rich.console import Console
    from rich.progress import Progress

    from sdpl.files import replace_file
    from sdpl.train.check import check, read_splits
    from sdpl.train.report import check_tables

    splits = read_splits(list(labels), list(images), format)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(len(split) for split in splits.values()))
        result = check(splits, lambda: progress.advance(task), lambda step: progress.update(task, description=step))
    for table in check_tables(result):
        Console().print(table)
    if json_path is not None:
        with replace_file(json_path) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=2) + "\n")
    click.echo(f"kinds of problems: {result.problems}, of warnings: {len(result.findings) - result.problems}")
    click.get_current_context().exit(1 if result.problems else 0)


@data.command(name="mask")
@click.argument("labels", type=PATH)
@click.option("--proportion", type=click.FloatRange(0, 1, min_open=True), required=True, help="Of the labels, to keep.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--out", type=PATH, required=True, help="The table to write: .csv, .jsonl or .parquet.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@IMAGES
@FORMAT
def mask_data(labels, proportion, seed, out, force, images, format) -> None:
    """Hide labels at random, and write the rest as a table.

    This is the partial-label set of the field's benchmarks: each label of the images x categories matrix is kept with
    probability PROPORTION, drawn by NumPy's RandomState(SEED). The same file, proportion and seed give the same set
    everywhere, and the same labels as data.known_proportion and data.mask_seed in a configuration.
    """
    from sdpl.train.formats import read_labels, write_labels
    from sdpl.train.partial import mask_labels

    full = read_labels(labels, images, format)
    partial = full.with_labels(mask_labels(full.labels, proportion, seed))
    folder = write_labels(partial, out, force)
    known, total = int((partial.labels != 0).sum()), partial.labels.size
    click.echo(
        f"{out}: {len(partial)} images, {len(partial.categories)} categories, {known / total:.1%} of labels known"
    )
    click.echo(f"train on it with  annotations: {out}  and  images: {folder}")
