"""The network for classification of the authors of relational surrogate loss learning (arXiv:2202.13197)."""

import torch
from torch import nn

from ..base import Evidence, SurrogateNetwork


class PaperClassificationNetwork(SurrogateNetwork):
    """The authors' network from p(label), with sub-modules named as in their checkpoints."""

    architecture = "paper"
    tasks = ("classification",)

    def __init__(self, *, hidden_size: int = 128):
        super().__init__()
        width = hidden_size
        self.logits_fcs = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return self.curve(evidence.outputs.softmax(-1).gather(-1, evidence.labels[..., None]).squeeze(-1))

    curve_of = "p(label)"

    def curve(self, probability: torch.Tensor) -> torch.Tensor:
        return self.loss(self.logits_fcs(probability[..., None])).squeeze(-1).abs()
