"""Kappa of classes that are named, and of ones with large numbers, is that of scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from hf_reloss import load_metric
from hf_reloss.metrics import metric_of

GRADES = [-2, 0, 1, 3, 7]
PAIRS = st.lists(st.tuples(*[st.sampled_from([*GRADES, 9])] * 2), min_size=1, max_size=15)
WEIGHTS = st.sampled_from([None, "linear", "quadratic"])


def theirs(pairs, weights, labels=None):
    predictions, references = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cohen_kappa_score(references, predictions, weights=weights, labels=labels)
        except ValueError:  # none of the labels is there
            return math.nan


@settings(deadline=None, max_examples=80)
@given(PAIRS, WEIGHTS, st.permutations(GRADES), st.integers(2, 5))
def test_grades_that_are_named_keep_their_distance(pairs, weights, order, number):
    labels = order[:number]
    metric = load_metric("cohen_kappa", weights=weights, labels=labels)
    wanted = theirs(pairs, weights, labels)
    predictions, references = (np.array(column) for column in zip(*pairs, strict=True))
    assert metric.compute(predictions, references) == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    hidden = np.concatenate([references, [-100]])
    found = metric.statistics(np.concatenate([predictions, [0]]), hidden)
    assert found.shape == (len(hidden), number**2)
    assert float(metric.score(found.sum(0))) == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert metric_of(metric.signature) == metric


def test_a_grade_that_nobody_has_counts_only_where_it_is_named():
    predictions, references = [1, 3, 3, 0], [1, 3, 1, 0]
    by_occurrence, by_name = (load_metric("cohen_kappa", weights="quadratic", labels=x) for x in (None, range(4)))
    assert by_occurrence.compute(predictions, references) > by_name.compute(predictions, references)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([3, 50_000, 2_000_000, 7])] * 2), min_size=1, max_size=12), WEIGHTS)
def test_large_class_numbers_take_no_memory(pairs, weights):
    predictions, references = (torch.tensor(column) for column in zip(*pairs, strict=True))
    metric = load_metric("cohen_kappa", weights=weights)
    assert metric.compute(predictions, references) == pytest.approx(theirs(pairs, weights), abs=1e-9, nan_ok=True)
    tokens = metric.compute(
        torch.stack([predictions, predictions]), torch.stack([references, torch.full_like(references, -100)])
    )
    assert tokens == pytest.approx(theirs(pairs, weights), abs=1e-9, nan_ok=True)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"pass labels=, the classes that there are"):
        load_metric("cohen_kappa").statistics([0, 50_000], [0, 1])
    with pytest.raises(ValueError, match=r"classes that differ, in their order, without -100, but got \[1, 1\]"):
        load_metric("cohen_kappa", labels=[1, 1])
    with pytest.raises(ValueError, match="class indices are 0 or more"):
        load_metric("cohen_kappa").compute([0, -1], [0, 1])
    assert "labels" not in load_metric("cohen_kappa").signature


def test_numbers_are_rounded_to_grades_that_are_named():
    metric = load_metric("cohen_kappa", weights="quadratic", labels=range(-2, 3)).informed({"of_grades": True})
    values, references = torch.tensor([-3.4, 0.2, 1.7, 9.0, 0.0]), torch.tensor([-2.0, 0.0, 1.0, 2.0, -100.0])
    wanted = cohen_kappa_score([-2, 0, 1, 2], [-2, 0, 2, 2], weights="quadratic", labels=[*range(-2, 3)])
    assert metric.compute(values, references) == pytest.approx(wanted)
