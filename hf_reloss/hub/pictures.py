"""Pictures of surrogates."""

from collections.abc import Callable, Sequence
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

MOST_NAMED = 32
"""The most classes of which the names are written beside a matrix."""


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


def plot_matrix(axes: Axes, matrix: torch.Tensor, names: Sequence[str] | None = None) -> None:
    """Draws what deciding for one class costs where another is right, on matplotlib axes.

    Args:
        axes: on which it is drawn.
        matrix: [C, C] by label and decision.
        names: of the classes, by default their numbers; of more than 32 none is written.
    """
    spelled = [literal(str(name)) for name in (names if names is not None else range(len(matrix)))]
    bound = max(float(matrix.abs().max()), 1e-9)
    signed = bool((matrix < 0).any())  # a mistake may be worth something, too
    picture = axes.imshow(
        matrix.numpy(), cmap="RdBu_r" if signed else "OrRd", vmin=-bound if signed else 0.0, vmax=bound
    )
    if len(matrix) <= MOST_NAMED:
        axes.set_xticks(range(len(matrix)), spelled, rotation=60 if max(map(len, spelled)) > 2 else 0)
        axes.set_yticks(range(len(matrix)), spelled)
    axes.set_xlabel("decided for")
    axes.set_ylabel("right")
    assert axes.figure is not None
    axes.figure.colorbar(picture, ax=axes, shrink=0.85)


def plot_groups(path: str | Path, surrogate: SurrogateFacts) -> None:
    """Draws held-out groups, the metric over the surrogate's loss and over the usual one, from its record.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        surrogate: one that `has_picture`.
    """
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    _draw_groups(figure.subplots(1, 2), surrogate)
    _write(figure, path)


def plot_learned(path: str | Path, surrogate: SurrogateFacts) -> bool:
    """Draws what was learned: the loss of one prediction and, where confusions have costs, these.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        surrogate: one that was learned.

    Returns:
        Whether there is anything to draw, of which the picture is.
    """
    draw = _drawings(surrogate)
    if draw:
        figure = Figure(figsize=(4.6 * len(draw), 3.8), layout="constrained")
        for axes, onto in zip(figure.subplots(1, len(draw), squeeze=False)[0], draw, strict=True):
            onto(axes, surrogate)
        _write(figure, path)
    return bool(draw)


def plot_surrogate(path: str | Path, surrogate: SurrogateFacts) -> None:
    """Draws what `plot_groups` and `plot_learned` do, side by side.

    Args:
        path: of the picture, by its ending PNG, SVG or PDF.
        surrogate: one that `has_picture`.
    """
    draw = _drawings(surrogate)
    figure = Figure(figsize=(8.4 + 4.2 * len(draw), 3.8), layout="constrained")
    panels = figure.subplots(1, 2 + len(draw))
    _draw_groups(panels[:2], surrogate)
    for axes, onto in zip(panels[2:], draw, strict=True):
        onto(axes, surrogate)
    _write(figure, path)


def _drawings(surrogate: SurrogateFacts) -> list[Callable[[Axes, SurrogateFacts], None]]:
    """What draws that which was learned."""
    found: list[Callable[[Axes, SurrogateFacts], None]] = []
    if surrogate.curve is not None:
        found.append(plot_curve)
    if surrogate.costs is not None:
        found.append(_draw_costs)
    return found


def _draw_costs(axes: Axes, surrogate: SurrogateFacts) -> None:
    assert surrogate.costs is not None
    plot_matrix(axes, surrogate.costs.cpu())
    axes.set_title("What a confusion costs, 1 on average", fontsize=11)


def _draw_groups(panels: Sequence[Axes], surrogate: SurrogateFacts) -> None:
    record, usual, (first, second) = surrogate.record, surrogate.usual_loss, panels
    held_out = record["held_out"]
    of_losses = (
        (first, "loss", "the surrogate", "alignment", OURS),
        (second, usual, surrogate.spelled_loss, f"alignment_{usual}", USUAL),
    )
    for axes, key, label, alignment, color in of_losses:
        axes.scatter(held_out[key], held_out["score"], s=14, color=color, alpha=0.6, lw=0)
        axes.set_title(f"{label}: rank correlation {record[alignment]:.3f}", fontsize=11)
        axes.set_xlabel("loss of a group")
    first.set_ylabel(literal(surrogate.metric_name or "metric"))
    second.sharey(first)


def _write(figure: Figure, path: str | Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.images and axes.get_label() != "<colorbar>":
            axes.grid(color=FAINT, alpha=0.4, lw=0.7)
    figure.savefig(path, dpi=120)
