"""A Hub on the loopback, a surrogate to publish, and somebody who does."""

import pytest
import torch

from hf_reloss import SurrogateConfig, SurrogateForClassification

from .runs import client_of
from .server import running_hub


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A saved surrogate that was learned, as far as its record says."""
    surrogate = SurrogateForClassification(SurrogateConfig())
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_()
    chance = torch.rand(3, 40).tolist()
    surrogate.config.metric = "accuracy|normalize:True"
    surrogate.config.record = {
        "alignment": 0.9, "alignment_cross_entropy": 0.8, "eval_groups": 40, "group_size": 16, "steps": 10,
        "held_out": dict(zip(("score", "loss", "cross_entropy"), chance, strict=True)),
    }  # fmt: skip
    surrogate.save_pretrained(tmp_path / "surrogate")
    return tmp_path / "surrogate"


@pytest.fixture
def client(hub, tmp_path):
    return client_of(hub, tmp_path)
