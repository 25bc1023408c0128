"""Options that several commands share, and the parsing of their values."""

from pathlib import Path

import click

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
JSON_FILE = click.option("--json", "json_path", type=PATH, help="Also write the numbers to this file.")


def numbers(option: str, text: str, most: int = 1024) -> list[int]:
    """Numbers from 1 to `most`, comma-separated. Raises UserError naming the option."""
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > most:
        raise UserError(f"{option} {text!r}: expected numbers up to {most}, such as 1,8,32.")
    return found
