import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.neighbors import NearestNeighbors

from hf_reloss.metrics import load_metric, retrieval


def by_neighbours(embeddings: np.ndarray, labels: np.ndarray, k: int) -> float:
    """What it is defined as, of examples that are all at different distances."""
    embeddings, labels = embeddings[labels != -100], labels[labels != -100]
    if len(labels) < 2:
        return math.nan
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = NearestNeighbors(n_neighbors=min(k + 1, len(unit)), algorithm="brute").fit(unit).kneighbors(unit)[1]
    hits = [
        any(labels[j] == labels[i] for j in [j for j in row if j != i][:k])
        for i, row in enumerate(nearest)
        if (labels == labels[i]).sum() > 1
    ]
    return float(np.mean(hits)) if hits else math.nan


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 8), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_it_is_the_share_of_queries_with_one_of_their_class_among_the_nearest(seed, size, classes, k):
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(size, 5)) * 10.0 ** generator.integers(-3, 4, (size, 1))
    labels = generator.choice([-100, *range(classes)], size)
    ours = load_metric("recall_at_k", k=k).compute(embeddings, labels)
    assert ours == pytest.approx(by_neighbours(embeddings, labels, k), abs=1e-9, nan_ok=True)


def test_for_one_neighbour_it_is_the_precision_of_pytorch_metric_learning():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, knn_func=CustomKNN(CosineSimilarity()))
    labels = torch.randint(30, (200,))
    embeddings = torch.randn(30, 8)[labels] + torch.randn(200, 8)
    theirs = calculator.get_accuracy(embeddings, labels)["precision_at_1"]
    assert 0.2 < theirs < 0.9
    assert load_metric("recall_at_k").compute(embeddings, labels) == pytest.approx(theirs, abs=1e-9)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    embeddings, labels = torch.randn(50, 4), torch.randint(5, (50,))
    index = torch.stack([torch.randperm(50)[:20] for _ in range(7)])
    metric = load_metric("recall_at_k", k=2)
    expected = [metric.compute(embeddings[rows], labels[rows]) for rows in index]
    for block in (1, 30, 1_000, 2**24):
        monkeypatch.setattr(retrieval, "MOST_COSINES", block)
        assert metric.score_groups(embeddings, labels, index).tolist() == expected
        assert metric.compute(embeddings, labels) == pytest.approx(by_neighbours(embeddings.numpy(), labels.numpy(), 2))


def test_a_model_that_maps_all_to_one_point_does_not_score():
    labels = torch.arange(12) % 3
    assert load_metric("recall_at_k").compute(torch.ones(12, 4), labels) == 0
    assert load_metric("recall_at_k").compute(torch.eye(3)[labels], labels) == 1


def test_without_two_of_a_class_it_is_not_defined():
    assert math.isnan(load_metric("recall_at_k").compute(torch.randn(3, 4), [0, 1, 2]))
    assert load_metric("recall_at_k").compute(torch.tensor([[1.0], [1.0], [-1.0]]), [0, 0, 1]) == 1


@pytest.mark.parametrize(
    ("k", "embeddings", "labels", "message"),
    [
        (0, torch.randn(3, 4), [0, 0, 1], "1 or more, but got 0"),
        (1, torch.randn(3), [0, 0, 1], r"embeddings \[N, D\] and class indices \[N\], but got \[3\]"),
        (1, torch.randn(3, 4), [0.0, 0.5, 1.0], "float64"),
        (1, torch.randn(3, 4), [0, 1], "3 predictions and 2 references"),
        (1, torch.tensor([[1.0], [math.nan]]), [0, 0], "not finite, of which there are 1"),
    ],
)
def test_what_is_wrong_is_told(k, embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        load_metric("recall_at_k", k=k).compute(embeddings, labels)
