"""Metrics of numbers are those of scipy and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reloss import load_metric
from hf_reloss.metrics import metric_of
from hf_reloss.metrics.classification import GradeMetric


def correlation(function):
    def of(x, y):
        return float(function(x, y)[0]) if len(x) > 1 else math.nan

    return of


def smape(x, y):
    return np.mean(2 * abs(x - y) / np.maximum(abs(x) + abs(y), np.finfo(float).eps))


THEIRS = {
    "pearsonr": correlation(scipy.stats.pearsonr),
    "spearmanr": correlation(scipy.stats.spearmanr),
    "mse": lambda x, y: sklearn.metrics.mean_squared_error(y, x),
    "rmse": lambda x, y: sklearn.metrics.root_mean_squared_error(y, x),
    "mae": lambda x, y: sklearn.metrics.mean_absolute_error(y, x),
    "mape": lambda x, y: sklearn.metrics.mean_absolute_percentage_error(y, x),
    "smape": smape,
    "r_squared": lambda x, y: sklearn.metrics.r2_score(y, x),
    "r2": lambda x, y: sklearn.metrics.r2_score(y, x),
}
PAIRS = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(PAIRS, st.sampled_from([1.0, 0.3, 1e6]))
def test_they_are_what_the_libraries_compute(pairs, scale):
    x, y = (scale * np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    for name, theirs in THEIRS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = theirs(x, y)
        for predictions in (x, x[:, None]):
            found = load_metric(name).compute(predictions, y)
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("name", THEIRS)
def test_a_large_offset_takes_no_digits(name):
    noise = np.random.default_rng(0).normal(size=(2, 50))
    x, y = 1e9 + noise[0], 1e9 + noise[0] + noise[1]
    assert load_metric(name).compute(x, y) == pytest.approx(THEIRS[name](x, y), rel=1e-9)


@pytest.mark.parametrize("name", THEIRS)
def test_groups_are_scored_as_they_are_alone_and_minus_100_does_not_count(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, generator=generator).double()
    y = y + x
    hidden = y.where(torch.arange(60) % 7 > 0, -100.0)
    index = torch.randint(60, (9, 20), generator=generator)
    found = load_metric(name).score_groups(x, hidden, index)
    for rows, score in zip(index, found, strict=True):
        rows = rows[rows % 7 > 0]
        assert float(score) == pytest.approx(THEIRS[name](x[rows].numpy(), y[rows].numpy()))


def test_which_direction_is_better_and_what_is_refused():
    worse = {name for name in THEIRS if not load_metric(name).higher_is_better}
    assert worse == {"mse", "rmse", "mae", "mape", "smape"}
    assert load_metric("mse", squared=False).compute([1.0, 3.0], [1.0, 1.0]) == pytest.approx(math.sqrt(2))
    assert math.isnan(load_metric("mse").compute([1.0], [-100.0]))
    assert math.isnan(load_metric("spearmanr").compute([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]))
    with pytest.raises(
        ValueError, match=r"one number for each example, \[N\] or \[N, 1\], but got predictions \[2, 3\]"
    ):
        load_metric("pearsonr").compute(torch.randn(2, 3), torch.randn(2))


def test_metrics_of_classes_see_grades():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 6, (80,), generator=generator)
    values = labels + torch.randn(80, generator=generator)
    metric = load_metric("cohen_kappa", weights="quadratic").informed({"of_grades": True})
    assert isinstance(metric, GradeMetric)
    rounded = values.round().clamp(1, 5).long()
    wanted = sklearn.metrics.cohen_kappa_score(labels, rounded, weights="quadratic")
    assert metric.compute(values[:, None], labels.float()) == pytest.approx(wanted)
    assert metric.name == "cohen_kappa"
    assert metric.informed({"of_grades": True}) is metric


def test_grades_may_begin_below_0():
    values, labels = torch.tensor([-1.6, 0.2, 1.7, 0.9, -0.4]), torch.tensor([-2.0, 0.0, 1.0, 2.0, -100.0])
    metric = load_metric("cohen_kappa", weights="quadratic").informed({"of_grades": True})
    expected = sklearn.metrics.cohen_kappa_score([0, 2, 3, 4], [0, 2, 4, 3], weights="quadratic")
    assert metric.compute(values, labels) == pytest.approx(expected)


def test_errors_are_scaled_by_those_of_the_naive_forecast_of_a_series():
    predictions, references, training = [2.5, 0.0, 2, 8, 1.25], [3, -0.5, 2, 7, 2], [5, 0.5, 4, 6, 3, 5, 2]
    mean = np.mean(np.abs(np.subtract(predictions, references)))
    for periodicity in (1, 3):
        naive = np.mean(np.abs(np.subtract(training[periodicity:], training[:-periodicity])))
        metric = load_metric("mase", training=np.array(training), periodicity=periodicity)
        assert metric.compute(predictions, references) == pytest.approx(mean / naive)
        assert not metric.higher_is_better
        assert metric_of(metric.signature) == metric
    with pytest.raises(ValueError, match="pass training=, of which there are 1"):
        load_metric("mase", training=[1.0])
