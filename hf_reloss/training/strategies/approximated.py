"""Learned approximation: a network of sets regresses the metric, in turn with the model that is trained on it.

Grabocka et al. 2019, Learning Surrogate Losses, arXiv:1905.10108.
"""

from typing import Any

from ...metrics import Metric
from ...surrogates.base import Surrogate
from ...surrogates.config import SurrogateConfig
from .learned import Learned


class Approximated(Learned):
    """`"approximation"`: as `"auto"`, but what is learned is a network of sets that regresses the metric's values.

    It is learned again after every `refresh_steps`, by default as many as the first stretch has, and goes on from what
    it was. It has no soft metric to begin with or to fall back to.
    """

    word = "approximation"
    citation = "Grabocka et al. 2019, arXiv:1905.10108"
    starts_at_soft_metric = False

    @property
    def default_own_share(self) -> float:
        return 0.0

    @property
    def refresh_steps(self) -> int | None:
        steps = super().refresh_steps
        return max(1, self.warmup_steps) if steps is None else steps

    def to_learn(self, kind: type[Surrogate], metric: Metric) -> tuple[Surrogate, dict[str, Any]]:
        network = kind(SurrogateConfig(task=kind.task, architecture="set"))
        settings: dict[str, Any] = {"objective": "approximation"}
        if self.surrogate is not None:  # it goes on from what it was
            network.load_state_dict(self.surrogate.state_dict())
            settings["num_train_epochs"] = 2
        return network, settings
