"""Surrogates for one number per example: from values [..., N] and labels [..., N] float."""

from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import torch

from ..losses.base import Evidence
from ..losses.learned.numbers import AgreementNetwork, ErrorNetwork, NumberNetwork
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, output_tensor
from .config import SurrogateConfig

AGREEMENTS = {"pearsonr": False, "pearson": False, "spearmanr": True, "spearman": True}
"""The names of metrics that correlations are called by, and whether they are of ranks."""

ERRORS = {"mse": 2, "rmse": 2, "r_squared": 2, "r2": 2, "mae": 1}
"""The names of metrics of errors, and the power of an error that they are a mean of."""


class SurrogateForRegression(Surrogate):
    """A learned loss for models that put out one number per example, with labels [N] of floats.

    Two architectures: `"errors"`, the mean of a curve of standardised errors, which at its start is the squared error
    or, for `mae`, a smooth absolute error; `"agreement"`, the correlation of the group, of soft ranks for Spearman's
    and Lin's for kappa with quadratic weights, with a share of squared error.

    Evidence: outputs [..., N, 1], values; labels [..., N] float; counts [..., N], False where the label was -100.

    Example:
        >>> loss = SurrogateForRegression(SurrogateConfig(task="regression"))
        >>> loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0]))
        tensor(0.5000, grad_fn=<DivBackward0>)
    """

    task = "regression"
    networks = (ErrorNetwork, AgreementNetwork)
    read_columns = ("values",)
    scored = ("values", "labels")
    original_loss = "squared_error"
    of_values = True
    swaps_labels = True
    metric_options: ClassVar[dict[str, Any]] = {"of_grades": True}

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if not labels.is_floating_point() or (isinstance(outputs, Mapping) and outputs.get("logits") is None):
            return False
        return is_one_number(output_tensor(outputs, "logits"), labels)

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"values": output_tensor(outputs, "logits").float().reshape(labels.shape), "labels": labels.float()}

    def begin(self, predictions: datasets.Dataset, metric: Metric) -> None:
        assert isinstance(self.network, NumberNetwork)
        spread = torch.tensor(predictions["labels"][:], dtype=torch.float64).std(correction=0)
        if spread > 0:
            self.network.scale.copy_(spread)

    def example(self) -> tuple[str, str]:
        return "torch.randn(32, 1)", "torch.randn(32)"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        recorded = isinstance(outputs, Mapping) and outputs.get("values") is not None
        values = output_tensor(outputs, "values" if recorded else "logits").float()
        if labels is None or not is_one_number(values, labels):
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                "A surrogate for regression wants one number and one label per example, [..., N] or [..., N, 1] and "
                f"[..., N], but got {list(values.shape)} and {given}."
            )
        labels = labels.float()
        if not labels.isfinite().all():
            raise ValueError(
                f"{int((~labels.isfinite()).sum())} of {labels.numel()} labels are not finite: leave such examples out "
                f"of the data, or set their label to {IGNORED_LABEL}, which does not count."
            )
        if not values.isfinite().all():
            raise ValueError(
                f"{int((~values.isfinite()).sum())} of {values.numel()} values are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        counts = labels != IGNORED_LABEL
        return Evidence(values.reshape(*labels.shape, 1), labels.masked_fill(~counts, 0.0), counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        return (evidence.outputs[..., 0] - evidence.labels).square()

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForRegression":
        """A fresh surrogate of a structure that fits a metric, or what `load_metric` takes.

        For correlations, keys of compute_metrics that are called as these, and kappa with quadratic weights
        `"agreement"`; for all else `"errors"`, of absolute errors for `mae`.
        """
        metric = load_metric(metric)
        name = metric.name
        structure: dict[str, Any] = {"task": cls.task, "architecture": "errors"}
        if name in AGREEMENTS:
            structure |= {"architecture": "agreement", "loss_options": {"ranks": AGREEMENTS[name]}}
        elif name in ERRORS:
            structure |= {"loss_options": {"power": ERRORS[name]}}
        elif _is_quadratic_kappa(metric):
            structure |= {"architecture": "agreement", "loss_options": {"concordance": True}}
        return cls(SurrogateConfig(**structure | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return metric.name in AGREEMENTS or metric.name in ERRORS or _is_quadratic_kappa(metric)


def _is_quadratic_kappa(metric: Metric) -> bool:
    return metric.name == "cohen_kappa" and metric.options.get("weights") == "quadratic"


def is_one_number(values: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether there is one value, [..., N] or [..., N, 1], for each label [..., N]."""
    return values.shape == labels.shape or values.shape == (*labels.shape, 1)
