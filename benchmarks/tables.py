"""What tables of stored results are made of."""

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def shown_gain(gain: dict[str, float]) -> str:
    return f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
