"""The class-correlation loss of adaptive loss alignment (Huang et al. 2019, arXiv:1905.05895, equation 8)."""

from typing import ClassVar

import torch

from ..surrogates.base import Evidence
from ..surrogates.config import SurrogateConfig
from .base import HandMadeLoss


class ClassCorrelation(HandMadeLoss):
    """-σ(Σ_j Φ_yj log p_j) of an example of class y, with Φ [C, C] symmetric, the identity at its start.

    Φ is a buffer, `correlations`: a `LossController` changes it while a model is trained.
    """

    architecture = "class_correlation"
    options: ClassVar[dict[str, float]] = {"classes": 2}

    def __init__(self, config: SurrogateConfig):
        super().__init__(config)
        self.register_buffer("correlations", torch.eye(self.classes))

    def losses(self, evidence: Evidence) -> torch.Tensor:
        if evidence.outputs.shape[-1] != self.classes:
            raise ValueError(
                f"This class-correlation loss is for {self.classes} classes, but the model puts out "
                f"{evidence.outputs.shape[-1]} logits: make it with classes={evidence.outputs.shape[-1]}."
            )
        of_label = self.correlations[evidence.labels]
        return -torch.sigmoid((of_label * evidence.outputs.log_softmax(-1)).sum(-1))
