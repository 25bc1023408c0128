"""What the commands print and draw: measurements, the environment, a bundle's targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sdpl.bundle import Bundle
from sdpl.runtime.availability import in_order, target_obstacle
from sdpl.text import escaped


def latency_table(result: dict[str, Any]) -> Table:
    """The measurements; rows that are not stable carry a star."""
    backend, machine = result["backend"], result["environment"]
    clocks = dict.fromkeys(str(row["clock_mhz"]) for row in result["latencies"])
    where = machine.get("gpu") or f"{machine['cpu']}, {backend.get('threads', 'all cores')}"
    table = Table(
        box=box.SIMPLE,
        title=f"{escaped(result['target'])}, {backend['library']}, {where}, {result['image_size']} px, "
        f"{result['categories']} categories",
        caption=f"clock after each row: {', '.join(clocks)} MHz"
        + (f"; peak memory {result['peak_memory_mb']:.0f} MB" if result["peak_memory_mb"] else "")
        + (f", in use on the GPU {result['gpu_used_mb']:.0f} MB" if result["gpu_used_mb"] else ""),
    )
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "side, boundary": lambda row: f"{row['side']}, {row['boundary']}",
        "batch": lambda row: str(row["batch"]),
        "callers": lambda row: str(row["callers"]),
        "p50 ms": lambda row: f"{row['p50_ms']:.2f}",
        "p95 ms": lambda row: f"{row['p95_ms']:.2f}",
        "p99 ms": lambda row: f"{row['p99_ms']:.2f}",
        "spread": lambda row: f"{row['spread']:.1%}{'' if row['stable'] else ' *'}",
        "images/s": lambda row: f"{row['images_per_s']:.1f}",
    }
    if all(row["callers"] == 1 for row in result["latencies"]):
        del columns["callers"]
    for name in columns:
        table.add_column(name, justify="left" if name == "side, boundary" else "right", no_wrap=True)
    for row in result["latencies"]:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def draw_latencies(result: dict[str, Any], path: Path) -> None:
    """Throughput over latency, a line per side and boundary, a point per batch size."""
    from sdpl.plots import pyplot, save_figure

    figure, axis = pyplot().subplots(figsize=(6.4, 4.2))
    rows = [row for row in result["latencies"] if row["callers"] == 1]
    for side, boundary in dict.fromkeys((row["side"], row["boundary"]) for row in rows):
        line = [row for row in rows if (row["side"], row["boundary"]) == (side, boundary)]
        axis.plot([r["p50_ms"] for r in line], [r["images_per_s"] for r in line], "o-", label=f"{side}, {boundary}")
        for row in line:
            axis.annotate(str(row["batch"]), (row["p50_ms"], row["images_per_s"]), fontsize=7, xytext=(4, 4),
                          textcoords="offset points")  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("p50 latency of a batch (ms); numbers: batch size")
    axis.set_ylabel("images per second")
    axis.set_title(result["target"], fontsize=10)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("{x:g}")
    axis.tick_params(which="both", labelsize=8)
    axis.grid(True, which="both", alpha=0.2)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_figure(figure, path)


def environment_table(found: dict[str, Any]) -> Table:
    """Which backends run on this machine, and what is missing for the others."""
    gpus = [f"device {number}: {gpu['name']} (sm_{gpu['capability']})" for number, gpu in enumerate(found["gpus"])]
    title = f"{found['cpu']}, {found['cores']} cores; " + (", ".join(gpus) or str(found["gpu"]))
    versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    table = Table(title=title, caption=f"sdpl {found['sdpl']}, Python {found['python']}, {versions}")
    table.add_column("backend")
    table.add_column("here", overflow="fold")
    for name, state in found["backends"].items():
        table.add_row(name, escaped(state))
    return table


def target_states(bundle: Bundle) -> dict[str, dict[str, str]]:
    """For each target how it was proved, and whether it runs on this machine, as plain values."""
    targets = bundle.manifest.targets
    return {n: {"status": t.status, "here": target_obstacle(bundle, n) or "usable"} for n, t in targets.items()}


def target_table(bundle: Bundle) -> Table:
    """A bundle's targets: how each was proved, and whether it runs on this machine."""
    manifest = bundle.manifest
    table = Table(
        title=f"{escaped(str(bundle.path))}: {len(manifest.categories)} categories, made {escaped(manifest.created)}"
    )
    for name in ("target", "proof", "largest difference", "size", "here"):
        table.add_column(name, overflow="fold", justify="right" if name in ("largest difference", "size") else "left")
    for name in in_order(manifest.targets):
        target = manifest.targets[name]
        size = sum(manifest.files[file].size for file in set(target.files.values()))
        difference = target.proof().max_score_difference
        here = target_obstacle(bundle, name) or "usable"
        table.add_row(escaped(name), target.status, f"{difference:.1e}", f"{size / 1e6:.1f} MB", escaped(here))
    return table
