"""What a page, a picture and a log say of a surrogate."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

ORIGIN = re.compile(r"([\w.-]+(?:/[\w.-]+)*)@([\w.+-]+)")
"""Where a surrogate was loaded from: its repository, perhaps a folder in that, and the revision."""


@dataclass(frozen=True)
class SurrogateFacts:
    """What there is to say of a surrogate.

    Attributes:
        task: which models it is a loss for.
        architecture: its network's name.
        kind: `"learned"`, `"soft"` (the soft metric, of which nothing is learned), `"hand-made"` or `"adapted"`.
        usual_loss: the name of the loss that the task is usually trained on.
        metric: the signature of the metric that it was learned for, if that is known.
        origin: where it was loaded from, as `NAME@REVISION`.
        record: how it was learned, as in `SurrogateConfig.record`.
        options: those of its network that are not the default ones.
        learned: what was learned, in words, by name.
        parameters: how many it has.
        example: made-up outputs of a model and labels for them, as code.
        pipeline_tag: the Hub's word for the task of models that it is a loss for.
        curve: the loss of one prediction: losses [n] of points [n]; None if it has no such curve.
        curve_of: what the points are: `"margin"` or `"p(label)"`.
        costs: what was found out about confusions, [C, C] by label and decision; None if nothing was.
    """

    task: str
    architecture: str
    kind: str
    usual_loss: str
    metric: str | None = None
    origin: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    learned: Mapping[str, str] = field(default_factory=dict)
    parameters: int = 0
    example: tuple[str, str] = ("", "")
    pipeline_tag: str | None = None
    curve: Callable[[torch.Tensor], torch.Tensor] | None = None
    curve_of: str | None = None
    costs: torch.Tensor | None = None

    @property
    def name_and_revision(self) -> tuple[str, str]:
        """The repository, perhaps with a folder in it, and the revision; empty if it was not loaded from one."""
        found = ORIGIN.fullmatch(self.origin or "")
        return (found[1], found[2]) if found else ("", "")

    @property
    def spelled_task(self) -> str:
        """The task as a text has it."""
        return self.task.replace("multilabel", "multi-label classification")

    @property
    def spelled_loss(self) -> str:
        """The usual loss as a text has it."""
        return self.usual_loss.replace("cross_", "cross-").replace("_", " ")

    @property
    def metric_name(self) -> str | None:
        """The metric's name, without its options."""
        return self.metric and self.metric.split("|")[0]

    @property
    def has_picture(self) -> bool:
        """Whether its record holds all that the picture of held-out groups shows."""
        shown = {"alignment", f"alignment_{self.usual_loss}"} <= self.record.keys()
        return shown and {"score", "loss", self.usual_loss} <= self.record.get("held_out", {}).keys()
