import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings

from hf_reloss.metrics import load_metric


@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_the_mean_jaccard_score_of_the_pixels_that_count(seed, classes, reduced):
    generator = np.random.default_rng(seed)
    references = generator.choice([255, -100, *range(classes)], (4, 3, 5))
    predictions = generator.integers(0, classes, references.shape)
    due = references.copy()
    if reduced:
        due = np.where(due == 0, 255, np.where(due < 255, due - 1, due))
    counts = (due != 255) & (references != -100)
    ours = load_metric("mean_iou", reduce_labels=reduced).compute(predictions, references)
    if counts.any():
        theirs = sklearn.metrics.jaccard_score(due[counts], predictions[counts], average="macro")
        assert ours == pytest.approx(theirs, abs=1e-9)
    else:
        assert np.isnan(ours)


def test_logits_are_decided_over_their_second_dimension():
    logits, references = torch.randn(3, 4, 6, 5), torch.randint(4, (3, 6, 5))
    metric = load_metric("mean_iou")
    assert metric.compute(logits, references) == metric.compute(logits.argmax(1), references)
    assert metric.statistics(logits, references).shape == (3, 12)
    assert load_metric("mean_iou", num_labels=6).statistics(logits.argmax(1), references).shape == (3, 18)
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        metric.statistics(torch.randn(3, 6, 5), references)
    with pytest.raises(ValueError, match=r"predictions \[3, 3, 5\] for references \[3, 6, 5\]"):
        metric.compute(torch.randn(3, 4, 3, 5), references)


def test_group_scores_equal_compute_on_the_same_subset():
    predictions, references = torch.randint(3, (10, 4, 4)), torch.randint(3, (10, 4, 4))
    references[::3, 0] = 255
    index = torch.randint(10, (6, 3))
    metric = load_metric("mean_iou")
    expected = [metric.compute(predictions[rows], references[rows]) for rows in index]
    assert metric.score_groups(predictions, references, index).tolist() == pytest.approx(expected, abs=1e-12)
