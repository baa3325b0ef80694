"""Learning within something else: what it gives back, and that it leaves nothing behind."""

import torch

from hf_reloss import SurrogateForClassification, load_metric
from hf_reloss.learning.learn_surrogate import learn_surrogate

FEW = {"num_groups": 256, "num_eval_groups": 64, "group_size": 64, "num_train_epochs": 1, "min_alignment": -1.0}


def test_it_gives_back_the_surrogate_as_it_was_measured_before(predictions, tmp_path):
    metric = load_metric("cohen_kappa", weights="quadratic")
    surrogate = SurrogateForClassification.for_metric(metric)
    drawn = torch.get_rng_state()
    at_start = learn_surrogate(surrogate, predictions, metric, folder=tmp_path, **FEW)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not list(tmp_path.iterdir())
    assert torch.equal(at_start.network.costs, surrogate.network.costs)
    assert at_start.network.costs.any()
    assert not at_start.network.spline.log_slopes.any()
    assert surrogate.network.spline.log_slopes.any()
    assert at_start.config.record["steps"] == 0 < surrogate.config.record["steps"]
    usual = "alignment_cross_entropy"  # of the same held-out groups
    assert at_start.config.record[usual] == surrogate.config.record[usual]
    assert at_start.config.metric == surrogate.config.metric == metric.signature
