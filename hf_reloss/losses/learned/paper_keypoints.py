"""The network for pose estimation of the authors of relational surrogate loss learning (arXiv:2202.13197)."""

import torch
from torch import nn

from ..base import Evidence, SurrogateNetwork
from ..heatmaps import gaussian_targets


class PaperKeypointNetwork(SurrogateNetwork):
    """The authors' network, with sub-modules named as in their checkpoints: a · E, with an attention weight a.

    E is a joint's mean squared error. From its squared error at each pixel come 8 features, and a in (0, 1).
    """

    architecture = "paper"
    tasks = ("keypoints",)
    count_dims = 2
    curve_of = None
    width = 8

    def __init__(self, *, num_pixels: int = 3072, sigma: float | None = None):
        super().__init__()
        self.pixels, self.sigma = num_pixels, sigma
        self.logits_fcs = nn.Sequential(
            nn.Linear(self.pixels, self.width), nn.ELU(), nn.Linear(self.width, 1), nn.Sigmoid()
        )

    def losses(self, evidence: Evidence) -> torch.Tensor:
        height, width = evidence.outputs.shape[-2:]
        if height * width != self.pixels:
            raise ValueError(
                f"The architecture 'paper' was made for heatmaps of {self.pixels} pixels, but these have "
                f"{height}×{width}: set num_pixels={height * width} and learn it anew."
            )
        targets = gaussian_targets(evidence.labels[..., :2], height, width, self.sigma)
        errors = (evidence.outputs - targets).square().flatten(-2)
        return errors.mean(-1) * self.logits_fcs(errors).squeeze(-1)
