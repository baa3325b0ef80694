import importlib.metadata
import math
import re
import string
import sys

import datasets
import evaluate
import hypothesis.strategies as st
import jiwer
import pytest
import torch
from hypothesis import given, settings
from rouge_score.rouge_scorer import RougeScorer

from hf_reloss.metrics.meteor import Meteor
from hf_reloss.metrics.text import (
    CharacterErrorRate,
    ErrorRate,
    ExactMatch,
    MatchErrorRate,
    Rouge1,
    Rouge2,
    RougeL,
    RougeLsum,
    WordErrorRate,
    WordInformationLost,
)
from hf_reloss.metrics.translation import Bleu, ChrF, GoogleBleu, SacreBleu, TranslationEditRate

WORDS = [
    "the",
    "the",
    "The",
    "cat",
    "cats",
    "sat.",
    "on",
    "mat",
    "running",
    "1,000",
    "-",
    "(hi)",
    "don't",
    "naïve",
    "7",
]
words = st.sampled_from([*WORDS, "e\u0301", "猫", "是的。", "🙂", "&amp;", "<skipped>", "."])
sentences = st.lists(words, max_size=9).map(" ".join)
texts = st.one_of(
    sentences,
    st.lists(sentences, max_size=3).map("\n".join),
    st.sampled_from(["", " ", "\n\t", "\u3000", "well-\n", "-\nwell ", "a  b", " . . . . . ."]),
    st.text(max_size=12),
)


@st.composite
def examples(draw, most=3):
    """A prediction and its references, one of which it may be."""
    references = draw(st.lists(texts, min_size=1, max_size=most))
    return draw(st.one_of(texts, sentences, st.sampled_from(references))), references


def corpora(most=3):
    """Predictions, and lists of references of different lengths."""
    return st.lists(examples(most), min_size=1, max_size=6).map(
        lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
    )


def same(ours, theirs):
    return ours == pytest.approx(theirs, abs=1e-9, rel=1e-9, nan_ok=True)


METRICS = [
    Bleu(max_order=2),
    Bleu(smooth=True),
    SacreBleu(),
    SacreBleu(smooth_method="add-k", lowercase=True, use_effective_order=True),
    ChrF(),
    ChrF(word_order=2, eps_smoothing=True),
    TranslationEditRate(),
    Rouge1(),
    Rouge2(),
    RougeL(),
    RougeLsum(use_stemmer=True),
    ExactMatch(ignore_case=True),
    WordErrorRate(),
    CharacterErrorRate(),
    MatchErrorRate(),
    WordInformationLost(),
    GoogleBleu(),
    Meteor(tokenizer=str.split, synonyms=False),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.signature)

PREDICTIONS = ["the cat sat on the mat", "", "a cat.", "The Mat", "the the the the", "🙂 猫", "one two three", "same"]
REFERENCES = ["the cat is on the mat", "a mat", "", "the mat", "the cat the dog", "🙂 是的 猫", "three two one", "same"]


@pytest.mark.parametrize("kind", [Rouge1, Rouge2, RougeL, RougeLsum])
@settings(max_examples=40)
@given(corpora(), st.booleans())
def test_rouge_is_the_mean_of_the_best_f_measures(kind, corpus, use_stemmer):
    predictions, references = corpus
    scorer = RougeScorer([kind.name], use_stemmer=use_stemmer)
    measures = [scorer.score_multi(r, p)[kind.name].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert same(kind(use_stemmer=use_stemmer).compute(predictions, references), sum(measures) / len(measures))


def test_rouge_lsum_reads_lines_as_sentences():
    prediction, reference = "the cat sat\nit was a mat", "it was a mat\nthe cat sat"
    assert RougeLsum().compute([prediction], [reference]) == 1
    assert RougeL().compute([prediction], [reference]) < 1


@given(corpora(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, ["the ", "[a-c]+"], ["^T"]]))
def test_exact_match_compares_what_is_left(corpus, ignore_case, ignore_punctuation, ignore_numbers, regexes_to_ignore):
    def left(text):
        for regex in regexes_to_ignore or []:
            text = re.compile(regex).sub("", text)
        if ignore_case:
            text = text.lower()
        ignored = (string.punctuation if ignore_punctuation else "") + ("0123456789" if ignore_numbers else "")
        return [character for character in text if character not in ignored]

    predictions, references = corpus
    matches = [any(left(p) == left(r) for r in accepted) for p, accepted in zip(predictions, references, strict=True)]
    metric = ExactMatch(regexes_to_ignore, ignore_case, ignore_punctuation, ignore_numbers)
    assert same(metric.compute(predictions, references), sum(matches) / len(matches))


def test_exact_match_removes_regexes_before_it_ignores_case():
    predictions, references = ["cat?", "theater", "yelling", "agent"], ["the cat", "theater", "YELLING", "agent007"]
    options = {"ignore_case": True, "ignore_punctuation": True}
    assert ExactMatch().compute(predictions, references) == 0.25
    assert ExactMatch(["the ", "yell"], **options).compute(predictions, references) == 0.5
    assert ExactMatch(["the ", "yell", "YELL"], **options).compute(predictions, references) == 0.75
    assert ExactMatch(["the ", "yell", "YELL"], **options, ignore_numbers=True).compute(predictions, references) == 1


def test_exact_match_accepts_any_reference():
    assert ExactMatch().compute(["a", "b", "c"], [["b", "a"], ["b"], ["a", "b"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        (WordErrorRate(), jiwer.wer),
        (CharacterErrorRate(), jiwer.cer),
        (MatchErrorRate(), jiwer.mer),
        (WordInformationLost(), jiwer.wil),
    ],
    ids=["wer", "cer", "mer", "wil"],
)
@given(corpora(most=1))
def test_error_rates_equal_jiwer(metric, theirs, corpus):
    predictions, references = corpus
    assert same(metric.compute(predictions, references), theirs([r for [r] in references], predictions))


def test_error_rates_without_a_unit_in_the_references_are_the_insertions():
    assert WordErrorRate().compute(["a b", "c"], ["", " "]) == 3
    assert CharacterErrorRate().compute(["", ""], ["", ""]) == 0


@every_metric
def test_group_scores_equal_compute_on_the_same_subset(metric):
    index = torch.randint(len(PREDICTIONS), (12, 5))
    scores = metric.score_groups(PREDICTIONS, REFERENCES, index)
    assert scores.dtype == torch.float64
    assert len(set(scores.tolist())) > 3
    for score, rows in zip(scores.tolist(), index.tolist(), strict=True):
        assert same(score, metric.compute([PREDICTIONS[row] for row in rows], [REFERENCES[row] for row in rows]))


@every_metric
def test_sums_of_any_shape_are_scored_at_once(metric):
    statistics = metric.statistics(PREDICTIONS, REFERENCES)
    assert statistics.dtype == torch.float64
    assert statistics.device.type == "cpu"
    scores = metric.score(statistics.reshape(2, 4, -1))
    assert scores.shape == (2, 4)
    singly = [metric.compute([p], [r]) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert same(scores.flatten().tolist(), singly)


@every_metric
def test_no_predictions_score_nan_unless_the_library_defines_it(metric):
    statistics = metric.statistics([], [])
    assert statistics.shape == (0, metric.statistics(["a"], ["b"]).shape[1])
    nothing = statistics.sum(0)
    expected = math.nan
    if isinstance(metric, SacreBleu | ChrF | TranslationEditRate):
        expected = metric.scorer._compute_score_from_stats(nothing.tolist()).score
    elif isinstance(metric, ErrorRate | GoogleBleu):
        expected = 0
    assert same(metric.score(nothing).item(), expected)
    assert same(metric.compute([], []), expected)


@every_metric
def test_one_reference_may_be_a_string_or_a_list(metric):
    alone = metric.statistics(PREDICTIONS, REFERENCES)
    assert torch.equal(metric.statistics(tuple(PREDICTIONS), [[reference] for reference in REFERENCES]), alone)
    assert torch.equal(metric.statistics(*metric.read(PREDICTIONS, REFERENCES)), alone)


@every_metric
def test_what_is_not_text_is_refused(metric):
    wrong = {
        "2 predictions and 1 references": (["a", "b"], ["a"]),
        "one string: pass \\['a b'\\]": ("a b", ["a"]),
        "one string: pass \\['b a'\\]": (["a"], "b a"),
        "got Tensor. Decode token ids": (torch.tensor([[1, 2]]), ["a"]),
        "got int. Decode token ids": (["a"], [[1]]),
        "got float": ([0.5], ["a"]),
        "got NoneType": (["a"], [None]),
        "got list. .* join lists of words": ([["a", "b"]], ["a"]),
        "number 1 has none": (["a", "b"], [["a"], []]),
    }
    for message, (predictions, references) in wrong.items():
        with pytest.raises(ValueError, match=f"^{metric.name} wants .*{message}"):
            metric.compute(predictions, references)


@pytest.mark.parametrize("metric", [WordErrorRate(), CharacterErrorRate()], ids=["wer", "cer"])
def test_error_rates_refuse_several_references(metric):
    with pytest.raises(ValueError, match="got several: choose one of each"):
        metric.compute(["a", "b"], [["a"], ["a", "b"]])


def test_regexes_are_a_list():
    with pytest.raises(ValueError, match="regexes_to_ignore is a list: pass \\['the '\\]"):
        ExactMatch(regexes_to_ignore="the ")


@every_metric
def test_the_signature_names_options_and_versions(metric):
    name, *rest = metric.signature.split("|")
    versions = [f"{library}:{importlib.metadata.version(library)}" for library in metric.libraries]
    assert name == metric.name
    later = {"tokenizer"} if isinstance(metric, Bleu | Rouge1 | Rouge2 | RougeL | RougeLsum) else set()
    shown = {key: "str.split" if key == "tokenizer" and value else value for key, value in metric.options.items()}
    assert rest == [f"{key}:{value}" for key, value in shown.items() if key not in later] + versions
    assert versions or isinstance(metric, ExactMatch)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    for module in ("sacrebleu", "rouge_score.rouge_scorer", "jiwer"):
        monkeypatch.setitem(sys.modules, module, None)
    for metric in (ChrF(), Rouge1(), WordErrorRate()):
        with pytest.raises(ImportError, match="pip install 'hf-reloss\\[text\\]'"):
            metric.compute(["a"], ["a"])


def official(nested, function):
    """A module of evaluate that takes what the official one of that metric takes."""

    class Official(evaluate.Metric):
        def _info(self):
            text = datasets.Value("string")
            features = {"predictions": text, "references": datasets.Sequence(text) if nested else text}
            return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

        def _compute(self, **inputs):
            return function(**inputs)

    return Official(keep_in_memory=True)


def rouge(predictions, references, rouge_types, use_aggregator, use_stemmer=False):
    assert not use_aggregator
    scorer = RougeScorer(rouge_types, use_stemmer=use_stemmer)
    scores = [scorer.score_multi(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: [score[name].fmeasure for score in scores] for name in rouge_types}


@pytest.mark.parametrize("metric", [Rouge1(), Rouge2(use_stemmer=True), RougeL(), RougeLsum()])
def test_rouge_is_checked_against_evaluate_without_its_resampling(metric):
    references = [[reference, "the cat"] for reference in REFERENCES]
    assert metric.evaluate_module == "rouge"
    assert metric.evaluate_key == metric.name
    assert same(metric.check_against(official(True, rouge), PREDICTIONS, references), 0)


def test_the_others_are_checked_against_evaluate():
    def lower(predictions, references, ignore_case):
        assert ignore_case
        matches = [p.lower() == r.lower() for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(matches) / len(matches)}

    several = [[reference, "the cat"] for reference in REFERENCES]
    modules = {
        ExactMatch(ignore_case=True): lower,
        WordErrorRate(): lambda predictions, references: jiwer.wer(references, predictions),
        CharacterErrorRate(): lambda predictions, references: jiwer.cer(references, predictions),
    }
    for metric, function in modules.items():
        references = [[reference] for reference in REFERENCES]
        assert metric.compute(PREDICTIONS, references) > 0
        assert same(metric.check_against(official(False, function), PREDICTIONS, references), 0)
    with pytest.raises(ValueError, match="exact_match wants one reference per prediction, but got several"):
        ExactMatch().check_against(official(False, lower), PREDICTIONS, several)
