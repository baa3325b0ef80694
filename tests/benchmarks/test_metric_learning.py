"""What the benchmark of losses of embeddings is run on, on the real data that it uses."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "metric_learning.py")))


def test_no_intent_is_trained_on_read_and_reported(benchmark):
    comparison = benchmark.Comparison()
    parts = [set(data.labels.tolist()) for data in (comparison.train, comparison.validation, comparison.test)]
    assert [len(part) for part in parts] == [50, 25, 75]
    assert len(set.union(*parts)) == 150
    assert (torch.bincount(comparison.test.labels)[75:] == 30).all()


def test_embeddings_are_means_over_words_and_pairs(benchmark):
    torch.manual_seed(0)
    model = benchmark.BagOfWords()
    ids = benchmark._ids(["set", "my", "alarm"])
    assert len(ids) == 5
    padded = torch.cat([ids, torch.zeros(3, dtype=torch.int64)])[None]
    torch.testing.assert_close(model(padded).embeddings[0], model.vectors.weight[ids].mean(0))
