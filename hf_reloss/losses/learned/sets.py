"""A network of sets, for learned approximation (Grabocka et al. 2019, arXiv:1905.10108)."""

import torch
import torch.nn.functional as F
from torch import nn

from ..base import Evidence, SurrogateNetwork


class SetNetwork(SurrogateNetwork):
    """A network of sets, which knows nothing of metrics (Grabocka et al. 2019, arXiv:1905.10108, equation 8).

    Of each class, the pairs of its probability and of whether it is the label go through a network, are averaged over
    the group, and go through another; the mean over the classes that have labels goes through a third. Of two classes
    the second, the positive one, says all. Its value is what the objective `"approximation"` makes of it: -metric.
    """

    architecture = "set"
    tasks = ("classification",)
    curve_of = None

    def __init__(self, *, hidden_size: int = 128):
        super().__init__()
        width = min(hidden_size, 32)
        self.of_examples = nn.Sequential(nn.Linear(2, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.of_classes = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.of_group = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # as it usually starts, groups hardly differ after six layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts[..., None]
        number, classes = evidence.outputs.shape[-2:]
        probabilities, targets = evidence.outputs.softmax(-1), F.one_hot(evidence.labels, classes) * counts
        if classes > max(number, 2):  # as many examples have no more classes among them, and others do not count
            chosen = targets.sum(-2, keepdim=True).topk(number, dim=-1).indices.expand(*targets.shape[:-1], number)
            probabilities, targets = probabilities.gather(-1, chosen), targets.gather(-1, chosen)
        pairs = torch.stack([probabilities, targets.to(probabilities)], dim=-1)
        counting = counts.sum(-2).clamp(min=1)[..., None]
        of_classes = self.of_classes((self.of_examples(pairs) * counts[..., None]).sum(-3) / counting)
        present = (targets.sum(-2) > 0)[..., None]
        if classes == 2:
            present = torch.tensor([[False], [True]], device=targets.device).expand_as(present)
        mean = (of_classes * present).sum(-2) / present.sum(-2).clamp(min=1)
        return self.of_group(mean).squeeze(-1) * evidence.counts.any(-1)
