"""Tables of time, memory and bytes."""

import json

from tables import RESULTS, row


def speed(device: str) -> str:
    """A table of ratios."""
    result = json.loads((RESULTS / f"speed_{device}.json").read_text())
    rows = ["| | ours | theirs | ratio |", "|---|---|---|---|"]
    for what, found in result["rows"].items():
        if "ours_mb" in found:
            rows.append(f"| {what} | {found['ours_mb']:.0f} MB | {found['theirs_mb']:.0f} MB | {found['ratio']:.2f}× |")
        elif "ratio" in found:
            rows.append(f"| {what} | {found['ours_ms']:.2f} ms | {found['theirs_ms']:.2f} ms | {found['ratio']:.2f}× |")
        else:
            rows.append(f"| {what} | {_time(found['seconds'])} | | |")
    return "\n".join(rows)


def metric_speed(device: str) -> str:
    """A table of metrics: groups scored here and in the usual way, with what is counted once, and without."""
    result = json.loads((RESULTS / f"metric_speed_{device}.json").read_text())
    heads = (
        "metric",
        "against",
        "256 groups",
        "theirs",
        "ratio",
        "counting 512 examples",
        "2,560 groups, counting included",
    )
    rows = [row(heads), row(["---"] * len(heads))]
    for name, found in result["rows"].items():
        against = f"evaluate's way ({found['library']})" if found["against"] == "evaluate" else found["library"]
        times = f"{found['ours_ms']:.2f} ms", f"{found['theirs_ms']:,.0f} ms", f"{found['ratio']:,.0f}×"
        counted = f"{found['counting_ms']:.1f} ms", f"{found['ratio_with_counting']:,.0f}×"
        rows.append(row((f"`{name}`", against, *times, *counted)))
    return "\n".join(rows)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def scaling(device: str) -> str:
    """A table of the time that ranking takes, by groups."""
    result = json.loads((RESULTS / f"scaling_{device}.json").read_text())
    rows = [row(("groups ranked together", "time on one thread")), row(("---", "---"))]
    rows += [row((f"{int(groups):,}", f"{ms:.1f} ms")) for groups, ms in result["ranking_ms"].items()]
    return "\n".join(rows)


def gathered(device: str) -> str:
    """A table of the bytes that are gathered, by processes."""
    result = json.loads((RESULTS / f"scaling_{device}.json").read_text())["bytes"]
    rows = [row(("a step of a process", *(f"{processes} processes" for processes in result)))]
    rows.append(row(["---"] * (len(result) + 1)))
    for what in next(iter(result.values())):
        rows.append(row((what, *(f"{counted[what]:,} bytes" for counted in result.values()))))
    return "\n".join(rows)


def recording(device: str) -> str:
    """A table of what drawing groups from a large recording takes."""
    rows = json.loads((RESULTS / f"speed_{device}.json").read_text())["rows"]
    (found,) = [row for row in rows.values() if "predictions_read" in row]
    lines = [row(("predictions on disk", "size", "read", "time", "memory")), row(["---"] * 5)]
    sizes = (f"{found['disk_mb']:,.0f} MB", f"{found['predictions_read']:,}")
    cells = (f"{found['predictions']:,}", *sizes, f"{found['seconds']:.1f} s", f"{found['memory_mb']:,.0f} MB")
    return "\n".join([*lines, row(cells)])


TABLES = (speed, metric_speed, scaling, gathered, recording)
