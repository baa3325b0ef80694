"""Metrics of rankings."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from hf_reloss import load_metric

NUMBERS = st.integers(-3, 3).map(float)  # few, so that many documents score alike


@st.composite
def queries(draw, most=8):
    """Scores and relevance of up to 5 queries with up to `most` documents, of which some do not exist."""
    shape = draw(st.integers(1, 5)), draw(st.integers(1, most))
    size = shape[0] * shape[1]
    scores = draw(st.lists(NUMBERS, min_size=size, max_size=size))
    relevance = draw(st.lists(st.sampled_from([-100, 0, 0, 1, 2]), min_size=size, max_size=size))
    return np.array(scores).reshape(shape), np.array(relevance).reshape(shape)


def mean_over_queries(function, scores, relevance):
    """The mean of a function over queries with a relevant document; nan where there is none."""
    found = []
    for score, relevant in zip(scores, relevance, strict=True):
        exists = relevant != -100
        if (relevant[exists] > 0).any():
            found.append(function(score[exists], relevant[exists]))
    return float(np.mean(found)) if found else math.nan


def ndcg(scores, relevance, k=None):
    if len(scores) == 1:  # of which scikit-learn has no ranking
        return 1.0
    return ndcg_score(relevance[None], scores[None], k=k)


def average_precision(scores, relevance):
    return label_ranking_average_precision_score((relevance > 0)[None], scores[None])


def reciprocal_rank(scores, relevance):
    order = np.lexsort((relevance, -scores))  # of what scores alike, what is not relevant comes first
    return 1 / (1 + np.flatnonzero(relevance[order] > 0)[0])


@settings(max_examples=80, deadline=None)
@given(queries())
def test_they_are_what_scikit_learn_computes_of_each_query(drawn):
    scores, relevance = drawn
    wanted = {"ndcg": ndcg, "map": average_precision, "mrr": reciprocal_rank}
    for name, function in wanted.items():
        expected = mean_over_queries(function, scores, relevance)
        assert load_metric(name).compute(scores, relevance) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    expected = mean_over_queries(lambda s, r: ndcg(s, r, k=2), scores, relevance)
    assert load_metric("ndcg", k=2).compute(scores, relevance) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def in_first_places(scores, relevance, k):
    """How many relevant documents are in the first k places, the mean over all orders of what scores alike."""
    orders = list(itertools.permutations(range(len(scores))))
    sorted_by = [order for order in orders if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]
    return np.mean([(relevance[list(order[:k])] > 0).sum() for order in sorted_by])


@settings(max_examples=40, deadline=None)
@given(queries(most=4), st.integers(1, 6))
def test_shares_of_the_first_places_are_means_over_orders(drawn, k):
    for name, number in (("precision_at_k", lambda r: k), ("ranked_recall_at_k", lambda r: (r > 0).sum())):
        expected = mean_over_queries(lambda s, r, number=number: in_first_places(s, r, k) / number(r), *drawn)
        assert load_metric(name, k=k).compute(*drawn) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_only_the_first_places_count():
    scores, relevance = [[4.0, 3.0, 2.0, 1.0]], [[0, 1, 0, 1]]
    assert load_metric("mrr", k=1).compute(scores, relevance) == 0
    assert load_metric("mrr", k=2).compute(scores, relevance) == 0.5
    assert load_metric("map", k=2).compute(scores, relevance) == 0.25  # a half at the second place, of two
    assert load_metric("map", k=1).compute(scores, relevance) == 0
    with pytest.raises(ValueError, match="1 or more, but got 0"):
        load_metric("ndcg", k=0)
    with pytest.raises(ValueError, match="1 or more, but got None"):
        load_metric("precision_at_k", k=None)


def test_groups_are_scored_by_sums():
    torch.manual_seed(0)
    scores, relevance = torch.randn(50, 6), torch.randint(0, 3, (50, 6))
    index = torch.randint(50, (20, 10))
    for name in ("ndcg", "map", "mrr", "precision_at_k", "ranked_recall_at_k"):
        metric = load_metric(name, k=4)
        found = metric.score_groups(scores, relevance, index)
        expected = [metric.compute(scores[rows], relevance[rows]) for rows in index]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_bad_input_is_said_what_it_is():
    metric = load_metric("ndcg")
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2\]"):
        metric.compute(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="the model has diverged"):
        metric.compute([[math.nan, 1.0]], [[0, 1]])
    with pytest.raises(ValueError, match="relevant by 0 or more, but got -1"):
        metric.compute([[0.0, 1.0]], [[-1, 1]])
    assert math.isnan(metric.compute([[0.0, 1.0]], [[0, -100]]))
