"""Pictures of decision rules."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..hub.pictures import FAINT, MOST_NAMED, OURS, literal, plot_matrix
from .base import DecisionRule


def plot_rule(path: str | Path, rule: DecisionRule, names: Sequence[str] | None = None) -> bool:
    """Draws a decision rule: a bar for each class, a matrix of what decisions cost, or both.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        rule: the rule.
        names: of its classes, by default their numbers.

    Returns:
        Whether there is anything to draw, of which the picture is.
    """
    drawn = rule.drawn()
    if not drawn:
        return False
    figure = Figure(figsize=(4.6 * len(drawn), 3.8), layout="constrained")
    for axes, (what, values) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        axes.set_title(what[0].upper() + what[1:], fontsize=11)
        if values.dim() > 1:
            plot_matrix(axes, values, names)
        else:
            _plot_bars(axes, values, names)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return True


def _plot_bars(axes: Axes, values: torch.Tensor, names: Sequence[str] | None) -> None:
    axes.barh(range(len(values)), values.numpy(), color=OURS, height=0.7)
    axes.axvline(0, color=FAINT, lw=1)
    if len(values) <= MOST_NAMED:
        axes.set_yticks(
            range(len(values)), [literal(str(name)) for name in (names if names is not None else range(len(values)))]
        )
    axes.set_ylim(len(values) - 0.4, -0.6)  # the first is above
