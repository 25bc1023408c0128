"""What the commands print: measurements, the environment, a bundle's targets."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sdpl.bundle import Bundle
from sdpl.manifest import Target
from sdpl.runtime.availability import in_order, target_obstacle
from sdpl.text import counted, escaped

USUAL_HEADS = ("kernel", "in the graph")  # of targets in two stages, and of whole graphs


def latency_table(result: dict[str, Any]) -> Group:
    """The measurements, a block for each side and boundary; rows that are not stable carry a star. Fits 80 columns."""
    backend, machine = result["backend"], result["environment"]
    clocks = dict.fromkeys(str(row["clock_mhz"]) for row in result["latencies"])
    where = machine.get("gpu") or f"{machine['cpu']}, {backend.get('threads', 'all cores')}"
    size = f"{result['image_size']} px, {result['categories']} categories"
    parts: list[Text | Table] = [Text(f"{result['target']}, {backend['library']}, {where}, {size}", style="bold")]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "batch": lambda row: str(row["batch"]),
        "callers": lambda row: str(row["callers"]),
        "p50 ms": lambda row: f"{row['p50_ms']:.2f}",
        "p95 ms": lambda row: f"{row['p95_ms']:.2f}",
        "p99 ms": lambda row: f"{row['p99_ms']:.2f}",
        "spread": lambda row: f"{row['spread']:.1%}{'  ' if row['stable'] else ' *'}",
        "images/s": lambda row: f"{row['images_per_s']:.1f}",
    }
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["latencies"]:
        blocks.setdefault((row["side"], row["boundary"]), []).append(row)
    for (side, boundary), rows in blocks.items():
        table = Table(box=None, pad_edge=False, show_header=len(parts) == 1)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True, min_width=max(len(name), 9))
        for row in rows:
            table.add_row(*(cell(row) for cell in columns.values()))
        parts += [Text(f"{side}, {boundary}", style="cyan"), table]
    parts.append(
        Text(
            f"clock after each row: {', '.join(clocks)} MHz"
            + (f"; peak memory {result['peak_memory_mb']:.0f} MB" if result["peak_memory_mb"] else "")
            + (f", in use on the GPU {result['gpu_used_mb']:.0f} MB" if result["gpu_used_mb"] else ""),
            style="italic",
        )
    )
    return Group(*parts)


def environment_table(found: dict[str, Any]) -> Table:
    """Which backends run on this machine, and what is missing for the others."""
    gpus = [f"device {number}: {gpu['name']} (sm_{gpu['capability']})" for number, gpu in enumerate(found["gpus"])]
    title = f"{found['cpu']}, {found['cores']} cores; " + (", ".join(gpus) or found["gpu"])
    versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    table = Table(title=escaped(title), caption=f"sdpl {found['sdpl']}, Python {found['python']}, {versions}")
    table.add_column("backend")
    table.add_column("here", overflow="fold")
    for name, state in found["backends"].items():
        table.add_row(name, escaped(state))
    return table


def target_states(bundle: Bundle, device: int = 0) -> dict[str, dict[str, str]]:
    """For each target how it was proved, and whether it runs on this machine, as plain values."""
    return {
        name: {
            "status": target.status,
            "head": head_of(target),
            "here": target_obstacle(bundle, name, device) or "usable",
        }
        for name, target in bundle.manifest.targets.items()
    }


def head_of(target: Target) -> str:
    """How a target computes the head, with the errors that its export told."""
    with suppress(KeyError, TypeError, ValueError):  # the manifest's notes have no fixed form
        if "separable_head" in target.notes:
            found = target.notes["separable_head"]
            return f"separable, {int(found['terms'])} terms, {float(found['attention_moved']):.2%} of attention moved"
        if target.polynomial:
            found = target.notes["tanh"]
            moved = f"{float(found['attention_moved']):.3%} of attention moved, not {float(found['by_unit_alone']):.3%}"
            return f"kernel, up to {target.polynomial} of 8 tanh by polynomial, {moved}"
    return USUAL_HEADS[target.is_whole]


def target_table(bundle: Bundle, device: int = 0) -> Table:
    """A bundle's targets: how each was proved, and whether it runs on this machine."""
    manifest = bundle.manifest
    table = Table(
        title=f"{escaped(str(bundle.path))}: {counted(len(manifest.categories))}, made {escaped(manifest.created)}"
    )
    for name in ("target", "proof", "largest difference", "size", "here"):
        table.add_column(name, overflow="fold", justify="right" if name in ("largest difference", "size") else "left")
    for name in in_order(manifest.targets):
        target = manifest.targets[name]
        size = sum(manifest.files[file].size for file in set(target.files.values()))
        difference = target.proof().max_score_difference
        here = target_obstacle(bundle, name, device) or "usable"
        table.add_row(escaped(name), target.status, f"{difference:.1e}", f"{size / 1e6:.1f} MB", escaped(here))
        head = head_of(target)
        if head not in USUAL_HEADS:
            table.caption = "\n".join(filter(None, (str(table.caption or ""), escaped(f"{name}: {head}"))))
    return table
