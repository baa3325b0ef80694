"""Pictures of surrogates."""

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .facts import SurrogateFacts
from .plain import plain

OURS, USUAL, FAINT = "#c4441c", "#3f5a73", "#b9c0c6"


LONGEST_NAME = 80
"""In characters, of what is written beside an axis."""


def literal(text: str) -> str:
    """A name that somebody gave, as a text in a picture: matplotlib takes what is between two `$` for a formula."""
    return plain(text)[:LONGEST_NAME].replace("$", r"\$")


@torch.no_grad()
def plot_curve(axes: Axes, surrogate: SurrogateFacts) -> None:
    """Draws a surrogate's loss of one prediction, or part of one, on matplotlib axes; cross-entropy beside it.

    Raises:
        ValueError: for one without such a curve.
    """
    if surrogate.curve is None:
        raise ValueError(f"The architecture {surrogate.architecture!r} has no curve of one variable to draw.")
    of_margin = surrogate.curve_of == "margin"
    points = torch.linspace(-6, 6, 241) if of_margin else torch.linspace(0.002, 1, 241)
    axes.plot(
        points, F.softplus(-points) if of_margin else -points.log(), color=USUAL, lw=1.6, ls="--", label="cross-entropy"
    )
    axes.plot(points, surrogate.curve(points), color=OURS, lw=2.4, label="learned")
    if of_margin:
        axes.axvline(0, color=FAINT, lw=1)
    axes.set_xlabel("wrong   ←   margin of the label   →   right" if of_margin else "probability of the label")
    axes.set_ylabel("loss")
    axes.set_title("The learned loss", fontsize=11)
    axes.legend(frameon=False)


def plot_surrogate(path: str | Path, surrogate: SurrogateFacts) -> None:
    """Draws held-out groups, the metric over the surrogate's loss and over the usual one, from its record.

    If it has a curve of one variable, that is drawn beside.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        surrogate: one that was learned, with `held_out` in its record.
    """
    record, usual = surrogate.record, surrogate.usual_loss
    held_out = record["held_out"]
    has_curve = surrogate.curve is not None
    figure = Figure(figsize=(12.6 if has_curve else 8.4, 3.8), layout="constrained")
    first, second, *curve = figure.subplots(1, 3 if has_curve else 2)
    panels = (
        (first, "loss", "the surrogate", "alignment", OURS),
        (second, usual, surrogate.spelled_loss, f"alignment_{usual}", USUAL),
    )
    for axes, key, label, alignment, color in panels:
        axes.scatter(held_out[key], held_out["score"], s=14, color=color, alpha=0.6, lw=0)
        axes.set_title(f"{label}: rank correlation {record[alignment]:.3f}", fontsize=11)
        axes.set_xlabel("loss of a group")
    first.set_ylabel(literal(surrogate.metric_name or "metric"))
    second.sharey(first)
    if curve:
        plot_curve(curve[0], surrogate)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, alpha=0.4, lw=0.7)
    figure.savefig(path, dpi=120)
