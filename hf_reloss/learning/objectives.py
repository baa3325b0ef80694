"""What a surrogate is trained on.

An objective has a `gain`, of the losses [m] and scores [m] of all groups of a step, which is to be maximised and is
logged under the name `logged`, and the weight `gradient_penalty` of what holds the surrogate's gradients.
"""

import abc
import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ranking import soft_rank, spearman, standardize


@dataclass(frozen=True)
class Objective(abc.ABC):
    """What objectives have in common: λ, the weight `gradient_penalty` of the penalty."""

    logged: ClassVar[str]
    gradient_penalty: float

    @abc.abstractmethod
    def gain(self, losses: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What is maximised, a scalar, of losses [m] and scores [m]."""

    def penalty(self, norms: torch.Tensor, wanted: torch.Tensor | float = 1.0) -> torch.Tensor:
        """mean (‖∇L‖₂ - r)², a scalar.

        Args:
            norms: [...], ‖∇L‖₂ of each prediction's own loss.
            wanted: r, [...] or one for all.
        """
        return (norms - wanted).square().mean()


@dataclass(frozen=True)
class RelationalObjective(Objective):
    """-ρ(-L, M) + λ · mean (‖∇L‖₂ - r)², to be minimised (Huang et al. 2022, equations 5 to 8).

    ρ is Spearman's correlation between the negated losses L and the metric's scores M of the groups, on soft ranks. The
    losses are standardised before they are ranked, since the ranks of a relaxed sorting network collapse where values
    are close. The gradient is that of each prediction's own loss, not of the group's mean, so the scale of what is
    learned does not depend on the group's size, and learning rates chosen for cross-entropy carry over.

    r is 1 in the paper. A surrogate that starts as a hand-made loss has a better one, that loss's own gradient: so
    what is learned departs from it only where the metric's ranks ask for it. Held to 1 everywhere, gradients do not
    fade where a prediction is right, and models trained on that came out worse than on the hand-made start.

    Args:
        gradient_penalty: λ.
        method, steepness, distribution: of the soft ranks, see `soft_rank`.
    """

    logged: ClassVar[str] = "rho"
    method: str = "diffsort"
    steepness: float = 5.0
    distribution: str = "logistic_phi"

    def gain(self, losses: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`correlation`."""
        return self.correlation(losses, scores)

    def correlation(self, losses: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """ρ of m groups.

        Args:
            losses: [m], the loss of each group.
            scores: [m], its metric, higher is better.

        Returns:
            A scalar; 0, without a gradient, where all scores or all losses are the same and nothing can be ranked.
        """
        rank = functools.partial(
            soft_rank, method=self.method, steepness=self.steepness, distribution=self.distribution
        )
        if len(losses) < 2 or (scores == scores[0]).all() or (losses == losses[0]).all():
            return losses.detach().sum() * 0.0
        return spearman(standardize(-losses.float()), scores, rank=rank)


@dataclass(frozen=True)
class ApproximationObjective(Objective):
    """(M - (-L))², to be minimised: the negated loss L is to be the metric's score M itself.

    Grabocka et al. 2019, Learning Surrogate Losses, arXiv:1905.10108, equation 5.
    """

    logged: ClassVar[str] = "negative_squared_error"
    gradient_penalty: float = 0.0

    def gain(self, losses: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Minus the mean squared error, a scalar, of losses [m] and scores [m]."""
        return -(losses.float() + scores).square().mean()


OBJECTIVES: dict[str, type[Objective]] = {"relational": RelationalObjective, "approximation": ApproximationObjective}
