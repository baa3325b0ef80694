"""From what a trainer is given as `surrogate=` to a strategy."""

from typing import Any

from ...metrics import Metric
from .adaptive import Adaptive
from .approximated import Approximated
from .base import LossStrategy
from .function import OfFunction
from .given import Given
from .learned import Learned
from .minimum_risk import MinimumRisk
from .policy import PolicyGradient

COME_ALONG: tuple[type[LossStrategy], ...] = (
    Learned,
    Approximated,
    Adaptive,
    MinimumRisk,
    PolicyGradient,
    Given,
    OfFunction,
)
"""Those of this package, the more special ones first; others are asked before."""


def strategy_of(surrogate: Any, metric: Metric | Any = None) -> LossStrategy:
    """The strategy for what a trainer was given.

    Args:
        surrogate: a strategy, a word, a surrogate, a folder or Hub id of one, the name of a hand-made loss, a function.
        metric: what the run is for.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(surrogate, LossStrategy):
        if metric is not None:
            raise ValueError(f"metric= is what a {type(surrogate).__name__} is made with: pass it there.")
        return surrogate
    elsewhere = [kind for kind in LossStrategy.defined.values() if kind not in COME_ALONG]
    for kind in (*elsewhere, *COME_ALONG):
        found = kind.of(surrogate, metric)
        if found is not None:
            return found
    raise ValueError(
        "surrogate= wants a Surrogate, a folder or Hub id of one, 'auto' or another word, or a function of (outputs, "
        f"labels), but got {type(surrogate).__name__}."
    )
