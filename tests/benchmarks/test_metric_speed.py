"""The speed of every additive metric is measured, or it says why not; and what it is compared with gives the same."""

import metric_peers
import metric_speed
import pytest

from hf_reloss.metrics import AdditiveMetric
from hf_reloss.metrics.loading import _known


def test_every_additive_metric_is_compared_or_says_why_not():
    additive = {
        name
        for name, kind in _known().items()
        if issubclass(kind, AdditiveMetric) and kind.__module__.startswith("hf_reloss.")
    }
    assert additive == metric_peers.EVALUATE.keys() | metric_peers.LIBRARIES.keys() | metric_peers.LEFT_OUT.keys()


@pytest.mark.parametrize("name", ["f1", "subset_accuracy", "brier_score", "mase", "top_k_accuracy", "map"])
def test_both_ways_give_the_same(name, monkeypatch):
    monkeypatch.setattr(metric_speed, "SCORED_USUALLY", 2)
    found = metric_speed.of_groups(name, (metric_peers.EVALUATE | metric_peers.LIBRARIES)[name], turns=1)
    assert found["largest_difference"] < 1e-12
    assert found["ratio"] > found["ratio_with_counting"] > 1
