"""What several tests share: tiny models, synthetic predictions."""

from logging import NOTSET, getLogger

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

from hf_reloss.predictions.dataset import predictions_dataset

logging.disable_progress_bar()


class TinyClassifier(nn.Module):
    """A linear classifier that answers as a Hugging Face model does."""

    def __init__(self, features: int = 6, classes: int = 4, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.head(self.dropout(features))
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def tiny_rows(n: int, features: int = 6, classes: int = 4, seed: int = 0) -> list[dict]:
    """Examples of classes that can be told apart, though not always."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (n,), generator=generator)
    points = centres[labels] + 0.7 * torch.randn(n, features, generator=generator)
    return [{"features": point, "labels": label} for point, label in zip(points, labels, strict=True)]


def synthetic_predictions(n: int = 1500, classes: int = 5, seed: int = 0):
    """Predictions that get better from stage 0 to stage 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    stage = torch.linspace(0, 1, n)
    logits = torch.randn(n, classes, generator=generator) * 1.5
    logits[torch.arange(n), labels] += 3 * stage
    return predictions_dataset(logits, labels, stage)


@pytest.fixture(autouse=True)
def log_levels():
    """Programs that are run in this process set them for all of it."""
    for name in ("hf_reloss", "__main__"):
        getLogger(name).setLevel(NOTSET)
    logging.set_verbosity_warning()  # as transformers has it; where it is quieter, no progress is shown


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def predictions():
    return synthetic_predictions()
