"""What a job says of itself, as text."""

from sdpl.scale.score import Engine, Status, Summary
from sdpl.text import printable

MOST = 20  # categories listed in a summary


def status_line(status: Status, engine: Engine) -> str:
    """How far a job is, in one line."""
    rates = status.rates(engine)
    parts = [f"{status.images:,} images", f"{rates['images_per_s']:.1f}/s"]
    if rates["decoding_per_s"] and rates["model_per_s"]:
        parts.append(f"(alone: decoding {rates['decoding_per_s']:.0f}/s, model {rates['model_per_s']:.0f}/s)")
    parts.append(f"{status.bad:,} bad")
    if status.failures:
        parts.append(f"{len(status.failures)} shards failed")
    eta = status.eta_s()
    parts.append(f"ETA {duration(eta)}" if eta is not None else "ETA unknown")
    return "  ".join(parts)


def summary_lines(summary: Summary, out: str) -> list[str]:
    """The end of a job for a person."""
    counts = summary.counts
    done = summary.shards - len(summary.failures)
    lines = [
        f"{printable(out)}: {done} of {summary.shards} shards, {counts.images:,} images, {counts.bad:,} with an error"
    ]
    if counts.bad:
        lines[0] += " (why: the column `error`)"
    if counts.repeated:
        lines.append(f"of these, {counts.repeated:,} have a key that came before in their shard")
    if summary.repeated_inputs:
        lines.append(f"inputs named more than once, scored once: {summary.repeated_inputs:,}")
    if summary.shards_before:
        lines.append(f"finished by earlier runs: {summary.shards_before} shards")
    if summary.images:
        lines += _speed(summary)
    above = [(name, count) for name, count in summary.above().items() if count]
    lines.append("images above threshold: " + (", ".join(f"{n} {c:,}" for n, c in above[:MOST]) or "none"))
    if len(above) > MOST:
        lines[-1] += f" and {len(above) - MOST} more categories"
    return lines


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 4.2 s, 3 min 5 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _speed(summary: Summary) -> list[str]:
    where = f"{summary.workers} workers on {summary.machines} machines" if summary.workers > 1 else "one process"
    per_cpu = f", {summary.images_per_cpu_s:.1f} per CPU-second" if summary.images_per_cpu_s else ""
    lines = [
        f"this run: {summary.images:,} images in {duration(summary.elapsed_s)}, {summary.images_per_s:.1f}/s{per_cpu} "
        f"({summary.target}, {where})",
        f"slowest stage: {summary.slowest} (the model ran {summary.model_busy:.0%} of the time, decoding took "
        f"{summary.decoding_busy:.0%} of its threads' time)",
    ]
    if summary.billion_costs is not None:
        hours = 1e9 / summary.images_per_s / 3600
        lines.append(
            f"estimate: a billion images like these take {hours:,.0f} hours of {summary.machines} such machines "
            f"and cost {summary.billion_costs:,.0f}"
        )
    return lines
