"""What hand-made losses have in common."""

import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..base import Evidence, SurrogateNetwork
from ..layers import binary_margin


class HandMadeLoss(SurrogateNetwork):
    """A loss of which nothing is learned, from the logits [..., N, C] and labels [..., N] of evidence.

    One that reads no more than `label_losses` and labels is for tokens, too, of which evidence has margins, for
    several labels of each example, of which it has one logit each, and for pixels, logits [..., N, P, C].

    Attributes:
        tasks: whose evidence it reads.
        options: by name, with their defaults; a loss has them as attributes.
        wants_frequencies: whether it takes the share of each class in the training data, `frequencies` [C]; of several
            labels for each example the share of the examples that have each.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    options: ClassVar[dict[str, Any]] = {}
    wants_frequencies: ClassVar[bool] = False
    frequencies: torch.Tensor
    curve_of = None

    def __init__(self, task: str | None = None, **given: Any):
        super().__init__()
        self.task = task or self.tasks[0]
        self.of_tokens = self.task == "tokens"
        self.of_labels = self.task == "multilabel"
        self.of_pixels = self.task == "segmentation"
        self.count_dims = 2 if self.of_tokens or self.of_labels or self.of_pixels else 1
        self.nothing_learned = nn.Parameter(torch.empty(0))  # for models have a device and a precision by parameters
        if self.wants_frequencies:
            frequencies = given.pop("frequencies", None)
            if not (isinstance(frequencies, list | tuple) and frequencies and all(map(_is_positive, frequencies))):
                raise ValueError(
                    f"The loss {self.architecture!r} wants the share of each class in the training data, above 0, as "
                    f"loss_options={{'frequencies': [...]}}, but got {frequencies}."
                )
            shares = torch.tensor(frequencies, dtype=torch.float32)
            if self.of_labels and (shares >= 1).any():
                raise ValueError(
                    f"The loss {self.architecture!r} wants the share of the examples that have each label, above 0 and "
                    f"below 1, but got {frequencies}."
                )
            self.register_buffer("frequencies", shares if self.of_labels else shares / shares.sum())
        unknown = given.keys() - self.options.keys()
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"The loss {self.architecture!r} has no options {sorted(unknown)}: there are {known}.")
        for name, value in given.items():
            wanted = Integral if isinstance(self.options[name], int) else Real
            if not isinstance(value, wanted) or isinstance(value, bool) or not math.isfinite(value):
                kind = "a whole number" if wanted is Integral else "a number"
                raise ValueError(f"The loss {self.architecture!r} wants {kind} as {name}, but got {value!r}.")
        self.__dict__.update(self.options | given)

    def checked(self, evidence: Evidence) -> torch.Tensor:
        """The frequencies, if there are as many as the model has classes."""
        # The evidence of tokens does not tell how many classes there are.
        classes = evidence.outputs.shape[-2 if self.of_labels else -1]
        if self.of_tokens:
            classes = int(evidence.labels.max()) + 1
        if len(self.frequencies) != classes and not (self.of_tokens and classes < len(self.frequencies)):
            has = f"there are labels up to {classes - 1}" if self.of_tokens else f"the model puts out {classes} logits"
            raise ValueError(
                f"The loss {self.architecture!r} has the frequencies of {len(self.frequencies)} classes, but {has}: "
                "pass frequencies= of all of them."
            )
        return self.frequencies

    def label_losses(self, evidence: Evidence) -> torch.Tensor:
        """-log p(label), of the shape of `evidence.counts`."""
        if self.of_tokens:
            return F.softplus(-evidence.outputs[..., 0])
        if self.of_labels:
            return F.softplus(-binary_margin(evidence.outputs[..., 0], evidence.labels))
        return cross_entropies(evidence.outputs, evidence.labels)


class AdjustableLoss(HandMadeLoss, ABC):
    """A hand-made loss with P parameters that a `LossController` changes while a model is trained on it.

    Two statistics of validation data describe each parameter to the controller. Parameters are scaled so that a step
    of the controller's size, 0.1 by default, is a small one.
    """

    @abstractmethod
    def values(self) -> torch.Tensor:
        """The parameters, [P]."""

    @abstractmethod
    def adjust(self, changes: torch.Tensor) -> None:
        """Adds changes [P] to the parameters."""

    @abstractmethod
    def statistics(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Two statistics for each parameter, [2, P], of outputs [n, D] and labels [n] of validation examples."""

    def doubts(self, labels: torch.Tensor) -> str:
        """What its user should know of the labels [n] of validation data, if there is anything."""
        return ""


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    """That of each example, [..., N], of logits [..., N, C] and labels [..., N]; options of `F.cross_entropy`."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", **options)
    return losses.view(labels.shape)


def one_hot_labels(evidence: Evidence) -> torch.Tensor:
    """One-hot labels [..., N, C], 0 where a label does not count."""
    return F.one_hot(evidence.labels, evidence.outputs.shape[-1]) * evidence.counts[..., None].to(evidence.outputs)


def soft_dice(evidence: Evidence) -> torch.Tensor:
    """1 less the mean [...], over the classes that labels have, of 2 Σ p t / Σ (p + t) of evidence [..., N, C]."""
    targets = one_hot_labels(evidence)
    probabilities = evidence.outputs.softmax(-1) * evidence.counts[..., None]
    dice = 2 * (probabilities * targets).sum(-2) / (probabilities + targets).sum(-2).clamp(min=1e-9)
    present = targets.sum(-2) > 0
    return present.any(-1) * 1.0 - mean_where(dice, present)


def together(evidence: Evidence) -> Evidence:
    """Evidence of pixels [..., N, P, C] as that of examples [..., N P, C]."""
    return Evidence(evidence.outputs.flatten(-3, -2), evidence.labels.flatten(-2), evidence.counts.flatten(-2))


def mean_where(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean [...] of values [..., C] where they count, 0 if nothing does."""
    return values.masked_fill(~counts, 0.0).sum(-1) / counts.sum(-1).clamp(min=1)
