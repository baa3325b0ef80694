import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from sklearn.metrics import accuracy_score

from hf_reloss.metrics import load_metric

labels = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-100, 0, 1, 2, 3, 4])), min_size=1, max_size=40)


@given(labels)
def test_accuracy_equals_scikit_learn(pairs):
    predictions, references = (np.array(column) for column in zip(*pairs, strict=True))
    counts = references != -100
    ours = load_metric("accuracy").compute(predictions, references)
    if counts.any():
        assert ours == pytest.approx(accuracy_score(references[counts], predictions[counts]), abs=1e-12)
    else:
        assert np.isnan(ours)


def test_logits_are_decided_as_argmax_does():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert load_metric("accuracy").compute(logits, torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)


@given(st.integers(0, 1000))
def test_group_scores_equal_compute_on_the_same_subset(seed):
    generator = torch.Generator().manual_seed(seed)
    metric = load_metric("accuracy")
    logits = torch.randn(30, 4, generator=generator)
    references = torch.randint(4, (30,), generator=generator)
    index = torch.randint(30, (6, 9), generator=generator)
    scores = metric.score_groups(metric.decide(logits), index, references[index])
    assert scores.dtype == torch.float64
    assert scores.tolist() == [metric.compute(logits[rows], references[rows]) for rows in index]


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 predictions, but 3 references"):
        load_metric("accuracy").compute([0, 1], [0, 1, 1])
