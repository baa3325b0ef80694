"""Losses compared on the same seeds: paired differences with their intervals."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from rich.table import Table
from scipy import stats


class PairedDifference(NamedTuple):
    """A mean difference over pairs and its 95 % confidence interval (Student's t); nan bounds for a single pair."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> PairedDifference:
    """The difference of scores to a baseline, seed by seed, over the seeds that both have.

    Args:
        scores, baseline: seed to score.

    Raises:
        ValueError: if they share no seed.
    """
    differences = [scores[seed] - baseline[seed] for seed in sorted(scores.keys() & baseline.keys())]
    if not differences:
        raise ValueError("The two have no seed in common, so there is nothing to pair.")
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return PairedDifference(mean, math.nan, math.nan, 1)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return PairedDifference(mean, mean - half, mean + half, len(differences))


def comparison_table(
    results: Mapping[str, Mapping[int, float]],
    baseline: str,
    *,
    title: str,
    metric: str,
    alignments: Mapping[str, float] | None = None,
) -> Table:
    """A table of losses: mean score, paired difference to the baseline, seeds ahead, alignment.

    Args:
        results: loss to seed to score, in points.
        baseline: the loss that the others are compared with.
        title: above the table.
        metric: heading of the scores.
        alignments: loss to held-out alignment, where it is known.
    """
    table = Table(title=title)
    for heading in ("loss", metric, f"over {baseline.replace('_', ' ')} [95 %]", "seeds ahead"):
        table.add_column(heading, justify="left" if heading == "loss" else "right")
    if alignments:
        table.add_column("alignment", justify="right")
    for loss, scores in results.items():
        row = [loss.replace("_", " "), f"{statistics.fmean(scores.values()):.2f}"]
        if loss == baseline:
            row += ["", ""]
        else:
            ahead = sum(score > results[baseline][seed] for seed, score in scores.items() if seed in results[baseline])
            difference = paired_difference(scores, results[baseline])
            row += [str(difference), f"{ahead} of {difference.pairs}"]
        if alignments:
            row.append(f"{alignments[loss]:.3f}" if loss in alignments else "")
        table.add_row(*row)
    return table
