"""What load on a server gave, as a table and as a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table


def load_table(result: dict[str, Any]) -> Table:
    """The measurements of a server."""
    table = Table(
        box=box.SIMPLE, title=f"{result['url']}, {result['model']} ({result['platform']})", caption="latencies in ms"
    )
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "load": lambda r: f"{r['callers']} callers" if r["loop"] == "closed" else f"{r['offered_per_s']:g}/s offered",
        "answers/s": lambda r: f"{r['answered_per_s']:.1f}",
        "p50": lambda r: _ms(r["p50_ms"]),
        "p95": lambda r: _ms(r["p95_ms"]),
        "p99": lambda r: _ms(r["p99_ms"]),
        "refused": lambda r: str(r["refused"]),
        "errors": lambda r: str(r["errors"]),
        "unsent": lambda r: str(r["unsent"]),
    }
    for name in columns:
        table.add_column(name, justify="left" if name == "load" else "right", no_wrap=True)
    for row in result["loads"]:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def draw_loads(result: dict[str, Any], path: Path) -> None:
    """Latency over throughput, a line for each loop, and the direct throughput where it was measured."""
    from sdpl.plots import pyplot, save_figure

    figure, axis = pyplot().subplots(figsize=(6.4, 4.2))
    for loop, key in (("closed", "callers"), ("open", "offered_per_s")):
        rows = [row for row in result["loads"] if row["loop"] == loop and row["answered"]]
        for percentile, style in (("p50_ms", "o-"), ("p99_ms", "x--")) if rows else ():
            x, y = [row["answered_per_s"] for row in rows], [row[percentile] for row in rows]
            axis.plot(x, y, style, label=f"{loop} loop, {percentile[:3]}")
        for row in rows:
            place = (row["answered_per_s"], row["p50_ms"])
            axis.annotate(f"{row[key]:g}", place, fontsize=7, xytext=(4, 4), textcoords="offset points")
    direct = [
        row["images_per_s"] for row in result.get("direct", {}).get("latencies", ()) if row["boundary"] == "model"
    ]
    if direct:
        axis.axvline(max(direct), color="grey", linestyle=":", label="direct calls, best batch")
    axis.set_yscale("log")
    axis.set_xlabel("answers per second; numbers: callers, or requests per second")
    axis.set_ylabel("latency (ms)")
    axis.set_title(f"{result['model']}, {result['platform']}", fontsize=10)
    axis.grid(True, which="both", alpha=0.2)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
