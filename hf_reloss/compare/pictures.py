"""Pictures of comparisons, and of a loss that was adapted."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..hub.facts import SurrogateFacts
from ..hub.pictures import FAINT, OURS, USUAL, literal, plot_curve
from .statistics import paired_difference, spelled

DOTS, ASIDE = 60, 0.11
"""Dots that the width of a picture has room for, side by side, and how far those in one place are moved apart."""


def plot_gains(path: str | Path, results: Mapping[str, Mapping[int, float]], baseline: str, *, metric: str) -> None:
    """Draws the paired differences of losses to a baseline: each seed's, the mean, and its 95 % interval.

    Args:
        path: of the picture.
        results: loss to seed to score.
        baseline: the loss that the others are compared with.
        metric: what the scores are of.
    """
    gains = {loss: paired_difference(scores, results[baseline]) for loss, scores in results.items() if loss != baseline}
    order = sorted(gains, key=lambda loss: gains[loss].mean)
    usual = results[baseline]
    differences = {
        loss: [score - usual[seed] for seed, score in results[loss].items() if seed in usual] for loss in order
    }
    spread = [0.0, *(value for values in differences.values() for value in values)]
    width = max(max(spread) - min(spread), 1e-9) / DOTS
    figure = Figure(figsize=(7.5, 1.4 + 0.42 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=USUAL, lw=1)
    for place, loss in enumerate(order):
        gain, seeds = gains[loss], differences[loss]
        heights = [place + aside for aside in _apart(seeds, width)]
        color = USUAL if gain.low <= 0 <= gain.high else OURS
        axes.plot(seeds, heights, "o", color=FAINT, mec="white", ms=5, zorder=3)
        axes.plot([gain.low, gain.high], [place, place], color=color, lw=2.2, zorder=2)
        axes.plot(gain.mean, place, "o", color=color, ms=7, zorder=4)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_yticks(range(len(order)), [spelled(loss) for loss in order])
    axes.set_xlabel(f"{literal(metric)}, over {spelled(baseline)}: each seed, mean and 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _apart(values: Sequence[float], width: float) -> list[float]:
    """How far each of some dots is moved aside, so that none lies on another."""
    seen: Counter[int] = Counter()
    moved = []
    for value in values:
        number = seen[round(value / width)]
        seen[round(value / width)] += 1
        moved.append(ASIDE * ((number + 1) // 2) * (1 if number % 2 else -1))
    return moved


def plot_correlations(
    path: str | Path,
    history: Sequence[tuple[int, torch.Tensor]],
    class_names: Sequence[str] | None = None,
    *,
    shown: int = 6,
) -> None:
    """Draws how the correlations Φ of adaptive loss alignment changed: those that did most, and all of them at the end.

    Args:
        path: of the picture.
        history: the pairs of Φ [C (C + 1) / 2] with the step, as in `AdaptsLoss.history`.
        class_names: in the order of the labels; by default their numbers.
        shown: of how many pairs of classes a line is drawn.
    """
    steps, values = [step for step, _ in history], torch.stack([values for _, values in history])
    classes = math.isqrt(2 * values.shape[-1])
    names = [literal(str(name)) for name in (class_names if class_names is not None else range(classes))]
    rows, columns = torch.triu_indices(classes, classes)
    changes = values - values[0]
    most = changes[-1].abs().argsort(descending=True, stable=True)[:shown].tolist()
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    lines, last = figure.subplots(1, 2)
    for pair in most:
        i, j = int(rows[pair]), int(columns[pair])
        label = names[i] if i == j else f"{names[i]} and {names[j]}"
        # Between two actions of the controller nothing changes, nor before the first, in the warm-up.
        lines.plot(steps, changes[:, pair].numpy(), lw=1.8, drawstyle="steps-post", label=label)
    lines.axhline(0, color=FAINT, lw=1, zorder=0)
    lines.set_xlabel("step")
    lines.set_ylabel("change of Φ, of pairs times C - 1")
    lines.spines[["top", "right"]].set_visible(False)
    lines.legend(frameon=False, fontsize=8)
    change = torch.zeros(classes, classes)
    change[rows, columns] = change[columns, rows] = changes[-1]
    bound = max(float(change.abs().max()), 1e-9)
    picture = last.imshow(change.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
    if classes <= 32:
        last.set_xticks(range(classes), names, rotation=60, ha="right", fontsize=8)
        last.set_yticks(range(classes), names, fontsize=8)
    last.set_title("change of Φ at the end", fontsize=10)
    figure.colorbar(picture, ax=last, shrink=0.85)
    figure.savefig(path, dpi=150)


def plot_comparison(
    path: str | Path,
    baseline: Mapping[int, float],
    ours: Mapping[int, float],
    surrogate: SurrogateFacts | None,
    *,
    title: str,
    metric: str,
) -> None:
    """Draws each seed's two scores with the mean gain, and, of a margin surrogate, its curve.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        baseline, ours: seed to score, in points.
        surrogate: whose curve is drawn beside; None for none.
        title: above the picture.
        metric: what the scores are of.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    pairs, *curve = figure.subplots(1, 1 if surrogate is None else 2, squeeze=False)[0]
    for seed in sorted(baseline.keys() & ours.keys()):
        better = ours[seed] > baseline[seed]
        pairs.plot([0, 1], [baseline[seed], ours[seed]], color=OURS if better else FAINT, alpha=0.7, lw=1.4, zorder=1)
    for position, scores, color in ((0, baseline, USUAL), (1, ours, OURS)):
        values = list(scores.values())
        pairs.scatter([position] * len(values), values, color=color, s=36, zorder=2)
        mean = sum(values) / len(values)
        side = -0.12 if position == 0 else 0.12
        pairs.plot([position + side - 0.05, position + side + 0.05], [mean, mean], color=color, lw=3)
        ha = "right" if position == 0 else "left"
        pairs.text(position + 1.6 * side, mean, f"{mean:.2f}", color=color, va="center", ha=ha, fontweight="bold")
    gain = paired_difference(ours, baseline)
    pairs.set_title(f"{gain.mean:+.2f} points, 95 % interval {gain.low:+.2f} to {gain.high:+.2f}", fontsize=11)
    pairs.set_xticks([0, 1], ["cross-entropy", "ReLoss"])
    pairs.set_xlim(-0.55, 1.55)
    pairs.set_ylabel(f"{literal(metric)}, one line per seed")
    if surrogate is not None:
        plot_curve(curve[0], surrogate)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=FAINT, alpha=0.4, lw=0.7)
    figure.suptitle(literal(title), fontsize=13, fontweight="bold")
    figure.savefig(path, dpi=150)
