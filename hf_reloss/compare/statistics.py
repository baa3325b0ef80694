"""Losses compared on the same seeds: paired differences with their intervals."""

import math
import statistics
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table
from scipy import stats


class PairedDifference(NamedTuple):
    """A mean difference over pairs and its 95 % confidence interval (Student's t); nan bounds for a single pair."""

    mean: float
    low: float
    high: float
    pairs: int

    def to(self, digits: int) -> str:
        """Mean and, if there is one, interval, with this number of digits."""
        mean = f"{self.mean:+.{digits}f}"
        return mean if self.pairs == 1 else f"{mean} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"

    def __str__(self) -> str:
        return self.to(2)


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
    failed: Mapping[str, str] | None = None,
    digits: int = 2,
) -> Table:
    """A table of losses: mean score, paired difference to the baseline, seeds ahead, alignment.

    Args:
        results: loss to seed to score.
        baseline: the loss that the others are compared with.
        title: above the table.
        metric: heading of the scores.
        alignments: loss to held-out alignment, where it is known.
        failed: loss to the reason why it has no scores, in rows after the others.
        digits: after the point.
    """
    table = Table(title=title)
    for heading in ("loss", metric, f"over {spelled(baseline)} [95 %]", "seeds ahead"):
        table.add_column(heading, justify="left" if heading == "loss" else "right")
    if alignments:
        table.add_column("alignment", justify="right")
    for loss, scores in results.items():
        row = [spelled(loss), f"{statistics.fmean(scores.values()):.{digits}f}"]
        if loss == baseline:
            row += ["", ""]
        else:
            ahead = sum(score > results[baseline][seed] for seed, score in scores.items() if seed in results[baseline])
            difference = paired_difference(scores, results[baseline])
            row += [difference.to(digits), f"{ahead} of {difference.pairs}"]
        if alignments:
            row.append(f"{alignments[loss]:.3f}" if loss in alignments else "")
        table.add_row(*row)
    for loss, reason in (failed or {}).items():
        table.add_row(spelled(loss), "failed", escape(textwrap.shorten(reason, 200, placeholder=" ...")))
    return table


def verdict(results: Mapping[str, Mapping[int, float]], baseline: str, *, higher_is_better: bool = True) -> str:
    """What paired runs support, in a sentence: which losses are better or worse than the baseline, and which neither.

    A loss is better, or worse, if the 95 % interval of its paired difference leaves out 0. With many losses one of them
    may do so by chance, which the sentence says.

    Args:
        results: loss to seed to score.
        baseline: the loss that the others are compared with.
        higher_is_better: whether a higher score is better.
    """
    named: dict[str, list[str]] = {"better": [], "worse": [], "neither": []}
    gains = {loss: paired_difference(scores, results[baseline]) for loss, scores in results.items() if loss != baseline}
    for loss, gain in sorted(gains.items(), key=lambda item: -item[1].mean if higher_is_better else item[1].mean):
        up, down = gain.low > 0, gain.high < 0
        kind = "neither" if not (up or down) else "better" if up == higher_is_better else "worse"
        name = spelled(loss)
        named[kind].append(name if kind == "neither" else f"{name} ({gain.to(4)})")
    usual, pairs = spelled(baseline), max((gain.pairs for gain in gains.values()), default=0)
    parts = [
        f"{_listed(losses)} {'is' if len(losses) == 1 else 'are'} {kind} than {usual}"
        for kind, losses in named.items()
        if losses and kind != "neither"
    ]
    if named["neither"]:
        parts.append(
            f"of {_listed(named['neither'])} {pairs} seeds do not say whether they are better or worse than {usual}"
        )
    sentence = "; ".join(parts) or "There is nothing to compare"
    if len(gains) > 1 and (named["better"] or named["worse"]):
        sentence += f" (of {len(gains)} comparisons at 95 % each, one may be so by chance)"
    return f"{sentence[0].upper()}{sentence[1:]}."


def spelled(loss: str) -> str:
    """The name of a loss as people read it."""
    return {"ala": "ALA", "reloss": "ReLoss"}.get(loss, loss.replace("_", " "))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
