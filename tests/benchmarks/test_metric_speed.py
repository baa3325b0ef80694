"""The speed of every additive metric is measured, or it says why not; and what it is compared with gives the same."""

import pytest

from hf_reloss.metrics import AdditiveMetric
from hf_reloss.metrics.loading import _known


def test_every_additive_metric_is_compared_or_says_why_not(program):
    peers = program("metric_peers")
    additive = {
        name
        for name, kind in _known().items()
        if issubclass(kind, AdditiveMetric) and kind.__module__.startswith("hf_reloss.")
    }
    assert additive == peers.EVALUATE.keys() | peers.LIBRARIES.keys() | peers.LEFT_OUT.keys()


@pytest.mark.parametrize("name", ["f1", "subset_accuracy", "brier_score", "mase", "top_k_accuracy", "map"])
def test_both_ways_give_the_same(name, program, monkeypatch):
    peers, speed = program("metric_peers"), program("metric_speed")
    monkeypatch.setattr(speed, "SCORED_USUALLY", 2)
    found = speed.of_groups(name, (peers.EVALUATE | peers.LIBRARIES)[name], turns=1)
    assert found["largest_difference"] < 1e-12
    assert found["ratio"] > found["ratio_with_counting"] > 1
