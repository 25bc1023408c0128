"""What the library reports (`sdpl.progress`), on the terminal: a bar for each step that counts, lines for the rest."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sdpl.progress import Progress, Report
from sdpl.text import printable, shortened

LINE_SECONDS = 30.0  # between two lines about a step, where there is no terminal to draw a bar on


@contextmanager
def shown(spinner: str = "", every: float = LINE_SECONDS) -> Iterator[Report]:
    """A report that shows on standard error. spinner: what is said while nothing is counted.

    In a file that is no terminal, a step that counts is a line every so many seconds.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    said = time.monotonic()
    with Bars(
        *columns, TimeRemainingColumn(), note, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks = {"": bars.add_task(spinner, total=None, note="")} if spinner else {}

        def report(progress: Progress) -> None:
            nonlocal said
            if progress.total is None:
                console.print(printable(shortened(progress.step)), markup=False, highlight=False, soft_wrap=True)
                return
            if not console.is_terminal and progress.done and time.monotonic() - said >= every:
                console.print(str(progress), markup=False, highlight=False, soft_wrap=True)
                said = time.monotonic()
            if progress.step not in tasks:
                tasks[progress.step] = bars.add_task(progress.step, total=progress.total, note="")
            bars.update(tasks[progress.step], completed=progress.done, note=progress.note)
            if progress.done >= progress.total:
                bars.remove_task(tasks.pop(progress.step))

        yield report
