"""Deciding for the class of the highest expected credit: the best decision there is for a mean of credits.

For a metric of the confusion matrix that is no mean, such as F1, the credits are its gradient at the confusion matrix
that the decisions lead to: Narasimhan et al. 2015, Consistent Multiclass Algorithms for Complex Performance Measures,
arXiv:1501.01287; for two classes Koyejo et al. 2014.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .base import DecisionRule


class ExpectedCredit(DecisionRule):
    """The class with the highest expected credit, Σ_i p(i) W[i, j].

    Args:
        temperature: T of the calibrated probabilities p = softmax(z / T + b).
        biases: b [C].
        credit: W [C, C], what deciding for j is worth where i is right, up to a constant for each i.
    """

    word = "expected_credit"

    def __init__(
        self,
        temperature: float,
        biases: Sequence[float] | torch.Tensor,
        credit: Sequence[Sequence[float]] | torch.Tensor,
    ):
        self.temperature = float(temperature)
        self.biases = torch.as_tensor(biases, dtype=torch.float64)
        self.credit = torch.as_tensor(credit, dtype=torch.float64)
        if self.credit.shape != (len(self.biases), len(self.biases)):
            raise TypeError(f"{len(self.biases)} biases, but a matrix {list(self.credit.shape)} of credits")

    @property
    def classes(self) -> int:
        return len(self.biases)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        credit = self.credit - self.credit.min()
        biases, credit = self.biases.to(logits.device), credit.to(logits.device)
        expected = (logits.double() / self.temperature + biases).softmax(-1) @ credit
        # Their softmax are the shares of each class in the sum of all expected credits.
        return expected.clamp(min=torch.finfo(torch.float32).tiny).log().to(logits.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {
            "temperature": round(self.temperature, 6),
            "biases": [round(value, 6) for value in self.biases.tolist()],
            "credit": [[float(f"{value:.6g}") for value in row] for row in self.credit.tolist()],
        }

    def offsets(self) -> torch.Tensor | None:
        # There are some where each class is worth something of its own if it is right, and all else is worth nothing,
        # and for any two classes.
        weights = _worth_of_classes(self.credit)
        if weights is None:
            return None
        found = self.temperature * (self.biases + weights.log())
        return found - found.mean()

    def drawn(self) -> dict[str, torch.Tensor]:
        if self.offsets() is not None:
            return super().drawn()
        biases = {"added to the logit": self.temperature * self.biases} if self.biases.any() else {}
        return biases | {"what a decision costs": self.credit.diagonal()[:, None] - self.credit}


def _worth_of_classes(credit: torch.Tensor) -> torch.Tensor | None:
    """What each class is worth [C], above 0, if a matrix [C, C] is one of such up to a constant for each row."""
    if len(credit) == 2:
        worth = torch.stack([credit[0, 0] - credit[0, 1], credit[1, 1] - credit[1, 0]])
        return worth if (worth > 0).all() else None
    others = credit.masked_fill(torch.eye(len(credit), dtype=torch.bool, device=credit.device), torch.nan)
    wrong = others.nanmean(-1, keepdim=True)
    worth = credit.diagonal() - wrong[:, 0]
    is_alike = ((others - wrong).nan_to_num().abs() <= 1e-9 * worth.abs().max()).all()
    return worth if is_alike and (worth > 0).all() else None
