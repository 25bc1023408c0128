"""sdpl-export"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdpl.cli.bars import shown
from sdpl.cli.command import Command
from sdpl.cli.options import MAX_PIXELS, PATH, Number, given
from sdpl.errors import UserError

if TYPE_CHECKING:
    from sdpl.manifest import Profile, Target

FOR_BUNDLES = {"targets", "batch", "max_pixels", "max_score_diff", "triton"}  # what one may be told


@click.command("export", cls=Command)
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, help="The bundle to write.  [default: CHECKPOINT with suffix .sdpl]")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="What to export for; may be repeated: cpu:fp32, openvino:bf16, cpu:int8, rtx:sm86:fp16 and "
    "more.  "
    "[default: cpu:fp32, and rtx:sm86:fp16 where TensorRT-RTX is installed]",
)
@click.option(
    "--default-target",
    metavar="NAME",
    help="The one that --backend auto takes where it runs, whatever its precision.  [default: without --target the "
    "GPU's engine; with it, the fastest in fp32]",
)
@click.option("--keep", is_flag=True, help="Also export again the other targets of a bundle that is there already.")
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes of engines.")
@click.option(
    "--head",
    type=click.Choice(["exact", "separable"]),
    default="exact",
    show_default=True,
    help="separable: one matrix product in place of a tanh for each category, for thousands of them; on a GPU the "
    "whole model is then one engine, in fp16 or fp32, without the kernel.",
)
@click.option(
    "--terms",
    type=click.IntRange(min=1),
    help="Terms of the separable head; each costs as much as the first.  [default: the fewest that are exact enough]",
)
@click.option(
    "--tanh",
    type=click.Choice(["unit", "mixed"]),
    default="unit",
    show_default=True,
    help="mixed: the GPU kernel takes a share of tanh as a polynomial, beside the tanh unit, as far as the precision's "
    "error budget allows; sdpl-info tells both errors.",
)
@click.option("--calibrate", type=PATH, multiple=True, help="Images or folders for int8 and the separable head.")
@click.option("--images", type=PATH, multiple=True, help="Verify on these images or folders, not the held-out ones.")
@click.option("--eval", "annotations", type=PATH, help="Labelled data on which mAP is compared too.")
@click.option("--eval-images", type=PATH, help="Folder of that data's images.  [default: where COCO keeps them]")
@MAX_PIXELS
@click.option("--max-score-diff", type=Number(min=0), help="Largest difference of a score.")
@click.option("--triton", type=PATH, help="Also write the bundle into this model repository of NVIDIA Triton.")
@click.option(
    "--max-mAP-drop", "--max-map-drop", "max_drop", type=Number(min=0), help="Largest loss of mAP in points "
    "(with --eval)."
)  # fmt: skip
def command(
    checkpoint: Path,
    out: Path | None,
    targets: tuple[str, ...],
    keep: bool,
    default_target: str | None,
    batch: str,
    head: str,
    terms: int | None,
    tanh: str,
    calibrate: tuple[Path, ...],
    images: tuple[Path, ...],
    annotations: Path | None,
    eval_images: Path | None,
    max_score_diff: float | None,
    max_drop: float | None,
    triton: Path | None,
) -> None:
    """Export CHECKPOINT as a bundle that runs without PyTorch, and prove that it gives the same scores.

    Given a bundle in place of the checkpoint, builds engines from its own graphs and adds them to it, or only writes it
    for Triton; needs no PyTorch.
    """
    from sdpl.export.proof import Limits
    from sdpl.targets import default_engine, parse_targets

    specs, profile, limits = parse_targets(targets), _profile(batch), Limits(max_score_diff, max_drop)
    if annotations is None and (eval_images is not None or max_drop is not None):
        option = "--eval-images" if eval_images is not None else "--max-mAP-drop"
        raise UserError(f"{option} is about labelled data: name it with --eval.")
    if checkpoint.is_dir():
        _require_bundle(checkpoint)
        for option in (option for name, option in given().items() if name not in FOR_BUNDLES):
            raise UserError(f"{option} needs a checkpoint: a bundle only gets more engines, in its place.")
        if targets:
            from sdpl.export.engines import add_engines

            with shown("reading") as report:
                _print(add_engines(checkpoint, specs, profile, limits, report))
        elif triton is None:
            raise UserError(f"{checkpoint} is a bundle: name the engine to add with --target, such as rtx:sm89:fp16.")
        _write_triton(checkpoint, triton)
        return
    from sdpl.data.formats import read_labels
    from sdpl.export.build import Options, export
    from sdpl.preprocess import find_images

    bundle = out or checkpoint.parent / f"{checkpoint.stem}.sdpl"
    dropped = _others(bundle, targets)
    if dropped and keep:
        specs = parse_targets((*(str(spec) for spec in specs), *dropped))
    elif dropped:
        click.echo(f"when all is proven, {bundle} has no {', '.join(dropped)}; --keep exports them too", err=True)
    options = Options(
        targets=specs,
        head=head,
        terms=terms,
        tanh=tanh,
        profile=profile,
        images=find_images(list(images)) if images else None,
        calibrate=find_images(list(calibrate)) if calibrate else None,
        evaluation=read_labels(annotations, eval_images) if annotations else None,
        limits=limits,
        default_target=default_target or (None if targets else default_engine()),
    )
    with shown("reading") as report:
        _print(export(checkpoint, bundle, options, report))
    if options.default_target is not None:
        click.echo(f"--backend auto takes {options.default_target} where it runs")
    _write_triton(bundle, triton)


def _require_bundle(folder: Path) -> None:
    from sdpl.manifest import MANIFEST

    if not (folder / MANIFEST).is_file():
        inside = folder / "model.ckpt"
        fix = f"name the checkpoint in it, {inside}" if inside.is_file() else "sdpl-train writes model.ckpt"
        raise UserError(f"{folder}: is a folder, neither a checkpoint nor a bundle; {fix}.")


def _others(bundle: Path, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets of a bundle that is there already, beside those that are exported now."""
    from sdpl.bundle import Bundle
    from sdpl.targets import TARGETS, parse_targets

    try:
        there = Bundle.open(bundle).manifest.targets
    except UserError:  # none, or one of another format: the export says what becomes of it
        return ()
    now = {str(spec) for spec in parse_targets(targets)}
    return tuple(name for name in there if name not in now and name in TARGETS)


def _print(made: "dict[str, Target]") -> None:
    from sdpl.verification import describe

    for name, target in made.items():
        click.echo(f"{name}: {target.status}; {describe(target.proof())}")


def _write_triton(bundle: Path, folder: Path | None) -> None:
    if folder is None:
        return
    from sdpl.export.triton import write_triton

    with shown() as report:
        models = write_triton(bundle, folder, report)
    for model in models:
        click.echo(f"wrote {model}")


def _profile(text: str) -> "Profile":
    """The batch profile of --batch."""
    from sdpl.manifest import Profile

    try:
        low, best, high = (int(part) for part in text.split(":"))
        return Profile(min=low, opt=best, max=high)
    except ValueError:
        raise UserError(
            f"--batch {text!r}: expected MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, such as 1:8:64."
        ) from None
