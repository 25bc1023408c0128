"""What the library reports (`sdpl.progress`), on the terminal: a bar for each step that counts, lines for the rest."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sdpl.progress import Progress, Report
from sdpl.text import printable, shortened


@contextmanager
def shown(spinner: str = "") -> Iterator[Report]:
    """A report that shows on standard error. spinner: what is said while nothing is counted."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks = {"": bars.add_task(spinner, total=None)} if spinner else {}

        def report(progress: Progress) -> None:
            if progress.total is None:
                console.print(printable(shortened(progress.step)), markup=False, highlight=False, soft_wrap=True)
                return
            if progress.step not in tasks:
                tasks[progress.step] = bars.add_task(progress.step, total=progress.total)
            bars.update(tasks[progress.step], completed=progress.done)
            if progress.done >= progress.total:
                bars.remove_task(tasks.pop(progress.step))

        yield report
