"""Bootstrapped scores: the same samples for all ways to predict, whatever the metric."""

import time

import numpy as np
import pytest
import torch

from hf_reloss import load_metric
from hf_reloss.metrics.bootstrap import CALLS, RESAMPLES, bootstrapped, interval


def test_ways_are_compared_on_the_same_samples():
    labels = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    good, bad = labels.clone(), labels.clone()
    good[:30], bad[:60] = (labels[:30] + 1) % 4, (labels[:60] + 1) % 4  # whatever is wrong in the one is in the other
    scores = bootstrapped(load_metric("accuracy"), [good, bad], labels, len(labels))
    assert scores.shape == (2, RESAMPLES)
    assert (scores[0] >= scores[1]).all()
    low, high = interval(scores[0] - scores[1])
    assert low < 0.1 < high
    # The standard error of the mean of 300 differences, a tenth of which are 1.
    assert (scores[0] - scores[1]).std() == pytest.approx((0.1 * 0.9 / 300) ** 0.5, rel=0.1)


def test_a_function_has_the_scores_of_the_metric_that_it_is():
    labels = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))
    decided = torch.where(torch.arange(200) % 3 == 0, (labels + 1) % 3, labels)
    own = load_metric(lambda predictions, references: float(np.mean(predictions == references)))
    scores = bootstrapped(own, [decided], labels, 200)
    assert CALLS[0] <= scores.shape[1] <= CALLS[1]
    known = bootstrapped(load_metric("accuracy"), [decided], labels, 200)
    assert scores.mean() == pytest.approx(known.mean().item(), abs=0.02)


def test_a_slow_function_is_called_less_often():
    def slow(predictions, references):
        time.sleep(0.02)
        return 0.5

    scores = bootstrapped(load_metric(slow), [torch.zeros(50).long()] * 2, torch.zeros(50).long(), 50)
    assert CALLS[0] <= scores.shape[1] < CALLS[1] / 2
