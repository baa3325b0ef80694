"""What a run has recorded, and what it says of how well the model fits."""

import pytest
import torch
import torch.nn.functional as F

from hf_reloss.metrics import load_metric
from hf_reloss.training.recording import RunRecording, wrong_way_round

from .test_trainer import make_trainer


def recording(tmp_path, labels, right):
    """Of sentences in which the tokens that are `right` are predicted right, and all others as 0."""
    found = RunRecording(make_trainer(tmp_path, metric="accuracy"))
    found.recorder.add(9.0 * F.one_hot(torch.where(right, labels, 0), 5), labels, stage=0.5)
    return found


def test_a_tagger_that_finds_nothing_is_not_right(tmp_path):
    tags = torch.tensor([[0, 0, 0, 0, 1, 2, 0, 0], [0, 0, 0, 3, 0, 0, 0, -100]]).repeat(4, 1)
    nothing = recording(tmp_path / "nothing", tags, torch.zeros_like(tags, dtype=torch.bool))
    assert nothing.right_share() == 0.0
    some = recording(tmp_path / "some", tags, (tags == 1) | (tags == 2))
    assert some.right_share() == pytest.approx(2 / 3)


def test_of_texts_all_tokens_say_how_well_they_fit(tmp_path):
    texts = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 2]])
    assert recording(tmp_path, texts, texts > 2).right_share() == 0.5


def test_the_direction_of_a_known_metric_is_not_called_into_question():
    known = wrong_way_round(load_metric("bleu"), -0.81)
    assert "bleu ranks what the model predicts so far the wrong way round (rank correlation -0.81)" in known
    assert "greater_is_better" not in known
    own = wrong_way_round(load_metric(lambda predictions, references: 0.0, name="cost of it"), -0.81)
    assert "cost of it falls where predictions get better" in own
    assert "greater_is_better=False" in own
