"""Writes the tables of README.md from benchmarks/results/: python benchmarks/readme.py."""

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

NAMES = {
    "cross_entropy": "cross-entropy",
    "label_smoothing": "label smoothing 0.1",
    "reloss": "**ReLoss**, learned on one run, used on the others",
    "twin": "its twin, with nothing learned",
    "auto": 'ReLoss, `surrogate="auto"`',
    "paper": "the paper's network",
}


def quality(name: str) -> str:
    """A table of losses: accuracy, paired difference with its interval, alignment."""
    result = json.loads((RESULTS / f"quality_{name}_test.json").read_text())
    rows = ["| loss | accuracy | over cross-entropy [95 %] | alignment |", "|---|---|---|---|"]
    records = result["surrogates"]
    alignments = {loss: record["alignment"] for loss, record in records.items()}
    alignments["cross_entropy"] = next(iter(records.values()))["alignment_cross_entropy"]
    for loss, label in NAMES.items():
        if loss not in result["accuracy"]:
            continue
        mean = statistics.fmean(result["accuracy"][loss].values())
        gain = result["over_cross_entropy"].get(loss)
        gained = f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else ""
        aligned = f"{alignments[loss]:.4f}" if loss in alignments else ""
        rows.append(f"| {label} | {mean:.2f} | {gained} | {aligned} |")
    return "\n".join(rows)


def speed(device: str) -> str:
    """A table of ratios."""
    result = json.loads((RESULTS / f"speed_{device}.json").read_text())
    rows = ["| | ours | theirs | ratio |", "|---|---|---|---|"]
    for what, row in result["rows"].items():
        if "ratio" in row:
            rows.append(f"| {what} | {row['ours_ms']:.2f} ms | {row['theirs_ms']:.2f} ms | {row['ratio']:.2f}× |")
        else:
            rows.append(f"| {what} | {1e3 * row['seconds']:.0f} ms | | |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The text with each table between its markers made anew."""

    def table(match: re.Match) -> str:
        kind, name = match["kind"], match["name"]
        body = {"quality": quality, "speed": speed}[kind](name)
        return f"<!-- {kind} {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- (?P<kind>quality|speed) (?P<name>\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
