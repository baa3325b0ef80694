"""SARI is that of evaluate's module."""

import json
import math
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_reloss import load_metric
from hf_reloss.metrics import as_evaluate
from hf_reloss.metrics.loading import metric_of

from .test_text import examples, official, same, texts

SOURCES = ["About 95 species are currently accepted .", "The cat perched upon the mat.", "", "🙂 猫 &amp;"]
PREDICTIONS = ["About 95 you now get in .", "the cat sat", "a", ""]
REFERENCES = [
    [
        "About 95 species are currently known .",
        "About 95 species are now accepted .",
        "95 species are now accepted .",
    ],
    ["The cat sat on the mat."],
    ["", "a b"],
    ["🙂 猫"],
]


def repeated(ngrams, times):
    return Counter({ngram: times * count for ngram, count in ngrams.items()})


def ratio(numerator, denominator):
    return numerator / denominator if denominator else 1


def f1(p, r):
    return 2 * p * r / (p + r) if p + r else 0


def sari(source, prediction, references):
    """SARI by its definition, as tensor2tensor reads it: string by string, order by order."""

    def ngrams(text, order):
        words = Tokenizer13a()(text.lower()).split(" ")
        return [" ".join(words[start : start + order]) for start in range(len(words) + 1 - order)]

    parts = []
    for order in (1, 2, 3, 4):
        wanted = Counter(ngram for text in references for ngram in ngrams(text, order))
        had, found = (repeated(Counter(ngrams(text, order)), len(references)) for text in (source, prediction))
        kept = [ngram for ngram in had if ngram in found]
        good = {ngram: min(had[ngram], found[ngram], wanted[ngram]) for ngram in kept}
        precision = ratio(sum(good[ngram] / min(had[ngram], found[ngram]) for ngram in kept), len(kept))
        recall = ratio(sum(good.values()), sum(min(had[ngram], wanted[ngram]) for ngram in had))
        gone = {ngram: had[ngram] - found[ngram] for ngram in had if had[ngram] > found[ngram]}
        removed = ratio(sum(max(0, gone[ngram] - wanted[ngram]) / gone[ngram] for ngram in gone), len(gone))
        new, missing = ({ngram for ngram in side if ngram not in had} for side in (found, wanted))
        right = len(new & missing)
        parts.append([f1(precision, recall), removed, f1(ratio(right, len(new)), ratio(right, len(missing)))])
    return sum(map(sum, parts)) / 12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, examples()), min_size=1, max_size=4))
def test_it_is_the_mean_of_the_definition(corpus):
    sources = [source for source, _ in corpus]
    predictions, references = map(list, zip(*(pair for _, pair in corpus), strict=True))
    theirs = [sari(*row) for row in zip(sources, predictions, references, strict=True)]
    ours = load_metric("sari", sources=sources).compute(predictions, references)
    assert same(ours, 100 * sum(theirs) / len(theirs))


def test_it_gives_what_the_module_gives():
    # The first is the example of the module, the others are what it gives, each alone.
    theirs = [26.953601953601954, 53.65079365079365, 76.38888888888889, 65.27777777777779]
    metric = load_metric("sari", sources=SOURCES)
    assert same(metric.score_groups(PREDICTIONS, REFERENCES, torch.arange(4)[:, None]).tolist(), theirs)
    index = torch.tensor([[0, 0, 2], [3, 1, 0]])
    wanted = [sum(theirs[place] for place in row) / 3 for row in index.tolist()]
    assert same(metric.score_groups(PREDICTIONS, REFERENCES, index).tolist(), wanted)
    whole = as_evaluate("sari").compute(sources=SOURCES, predictions=PREDICTIONS, references=REFERENCES)
    assert same(whole, {"sari": sum(theirs) / 4})
    found = official(True, lambda sources, predictions, references: {"sari": sum(theirs) / 4})
    assert same(metric.check_against(found, PREDICTIONS, REFERENCES), 0)


def test_its_signature_knows_the_sources_and_does_not_hold_them():
    metric, other = load_metric("sari", sources=SOURCES), load_metric("sari", sources=SOURCES[::-1])
    assert metric.signature != other.signature
    assert metric.signature == load_metric("sari", sources=tuple(SOURCES)).signature
    assert len(json.dumps(metric.signature)) < 80
    assert metric_of(metric.signature) is None


def test_sources_are_one_for_each_prediction():
    with pytest.raises(ValueError, match="pass sources=, one for each, in their order"):
        load_metric("sari").compute(["a"], ["a"])
    with pytest.raises(ValueError, match="sources has 4 entries, for 1 predictions"):
        load_metric("sari", sources=SOURCES).compute(["a"], ["a"])
    with pytest.raises(ValueError, match=r"pass \['a'\]"):
        load_metric("sari", sources="a")
    assert math.isnan(load_metric("sari").compute([], []))
