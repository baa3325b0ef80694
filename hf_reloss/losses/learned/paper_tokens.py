"""The network for translation of the authors of relational surrogate loss learning (arXiv:2202.13197)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..base import Evidence, SurrogateNetwork


class PaperTokenNetwork(SurrogateNetwork):
    """The transformer of Huang et al. 2022 for translation: from p(label) of each token to |·| of each sentence."""

    architecture = "paper"
    tasks = ("tokens",)
    count_dims = 2
    curve_of = None
    longest = 512

    def __init__(self, *, hidden_size: int = 128):
        super().__init__()
        width = hidden_size
        if width % 4:
            raise ValueError(f"'paper' has 4 heads, so hidden_size wants to be a multiple of 4, but is {width}.")
        self.logits_layer = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.positions = nn.Parameter(0.02 * torch.randn(self.longest, width))
        self.block = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation=F.elu, batch_first=True)
            for _ in range(2)
        )
        self.loss_layer = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts
        probability = torch.sigmoid(evidence.outputs[..., :1]).flatten(0, -4 if counts.dim() > 2 else -3)
        places = torch.arange(counts.shape[-1], device=counts.device).clamp(max=self.longest - 1)
        hidden = self.logits_layer(probability).view(-1, counts.shape[-1], self.positions.shape[-1])
        hidden = hidden + self.positions[places]
        flat = counts.reshape(-1, counts.shape[-1])
        hidden_padding = ~flat & flat.any(-1, keepdim=True)  # a sentence of no tokens attends to its padding
        with sdpa_kernel(SDPBackend.MATH):  # which alone can be differentiated twice
            for block in self.block:
                hidden = block(hidden, src_key_padding_mask=hidden_padding)
        tokens = self.loss_layer(hidden).squeeze(-1).view(counts.shape) * counts
        number = counts.sum(-1)
        sentences = (tokens.sum(-1) / number.clamp(min=1)).abs()
        return sentences.sum(-1) / (number > 0).sum(-1).clamp(min=1)
