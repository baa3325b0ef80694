"""NIST is NLTK's, of the tokens of its own tokenizer."""

import importlib
import math
import sys

import nltk.corpus
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.nist_score import corpus_nist

from hf_reloss import load_metric

from .test_text import PREDICTIONS, REFERENCES, corpora, official

LONG = "it is a guide to action which ensures that the army always obeys"


@settings(deadline=None, max_examples=60)
@given(corpora(), st.integers(1, 6))
def test_it_is_that_of_nltk(corpus, n):
    predictions, references = [*corpus[0], LONG], [*corpus[1], [LONG, "the guide is it"]]
    theirs = corpus_nist([[text.split() for text in given] for given in references], map_split(predictions), n)
    metric = load_metric("nist_mt", n=n, tokenizer=str.split)
    assert metric.compute(predictions, references) == pytest.approx(theirs, abs=1e-9)


def map_split(texts):
    return [text.split() for text in texts]


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"western_lang": False}])
def test_tokens_are_those_of_nltk(options, monkeypatch):
    every = type("Characters", (), {"chars": staticmethod(lambda kind: ["x"])})  # which are of another method
    monkeypatch.setattr(nltk.corpus, "perluniprops", every)
    monkeypatch.delitem(sys.modules, "nltk.tokenize.nist", raising=False)
    theirs = importlib.import_module("nltk.tokenize.nist").NISTTokenizer()
    monkeypatch.delitem(sys.modules, "nltk.tokenize.nist")
    ours = load_metric("nist_mt", **options)
    for text in [
        *PREDICTIONS,
        "Muffins cost $3.88 (or 1,000) in N.Y., &quot;e.g.&quot; &#91;7-8&#93;.",
        "a<skipped>\u2028b -x",
    ]:
        assert list(ours._tokens(text)) == theirs.tokenize(text, **options)


def test_groups_are_scored_by_their_own_references():
    index = torch.tensor([[0, 3, 6], [0, 0, 6], [2, 2, 2], [1, 1, 1]])
    metric = load_metric("nist_mt")
    scores = metric.score_groups(PREDICTIONS, REFERENCES, index).tolist()
    assert scores == [metric.compute([PREDICTIONS[i] for i in row], [REFERENCES[i] for i in row]) for row in index]
    assert scores[3] == 0  # without a token
    assert math.isnan(metric.compute([], []))
    assert metric.higher_is_better
    with pytest.raises(ValueError, match="1 or more, but got 0"):
        load_metric("nist_mt", n=0)
    with pytest.raises(ValueError, match="wants strings, but got int"):
        metric.compute([1], ["a"])


def test_it_is_checked_against_evaluate():
    def theirs(predictions, references, n):
        return {"nist_mt": corpus_nist([map_split(given) for given in references], map_split(predictions), n)}

    metric = load_metric("nist_mt", n=2)
    plain = ["a b c d", "e f g"], ["a b d", "e g f"]
    assert metric.check_against(official(True, theirs), *plain) == pytest.approx(0)
