"""Metrics of words with a tokenizer of one's own, for texts without spaces or Latin letters."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from nltk.translate.bleu_score import corpus_bleu
from rouge_score.rouge_scorer import RougeScorer

from hf_reloss import load_metric
from hf_reloss.metrics import metric_of, text

NEPALI = "जापान स्तब्ध छ र देश शान्त छ"
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@pytest.mark.parametrize("name", [*ROUGE, "bleu", "google_bleu"])
def test_equal_texts_of_any_script_match_by_their_own_words(name):
    metric = load_metric(name, tokenizer=str.split)
    assert metric.compute([NEPALI, "是的 不是 好的 谢谢"], [NEPALI, "是的 不是 好的 谢谢"]) == 1
    assert 0 < metric.compute([NEPALI], ["जापान स्तब्ध छ र गाउँ शान्त छ"]) < 1
    assert load_metric(name, tokenizer=list).compute(["是的不是"], ["是的不是"]) == 1


class Splitting:
    """As rouge-score takes a tokenizer."""

    def tokenize(self, text):
        return text.lower().split()


WORDS = st.lists(st.sampled_from(["जापान", "छ", "देश", "是的", "A", "a", "\n"]), max_size=9).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.sampled_from(ROUGE))
def test_rouge_is_that_of_its_library_with_the_tokenizer(pairs, name):
    scorer = RougeScorer([name], tokenizer=Splitting())
    theirs = [scorer.score(reference, prediction)[name].fmeasure for prediction, reference in pairs]
    ours = load_metric(name, tokenizer=Splitting().tokenize).compute(*map(list, zip(*pairs, strict=True)))
    assert ours == pytest.approx(sum(theirs) / len(theirs), abs=1e-9)


@pytest.mark.filterwarnings("ignore:(?s).*overlaps")
def test_bleu_of_characters_counts_spaces_too():
    prediction, reference = "是的 不是 好的", "是的 不是好的"
    theirs = corpus_bleu([[list(reference)]], [list(prediction)])
    assert load_metric("bleu", tokenizer=list).compute([prediction], [reference]) == pytest.approx(theirs)


def test_texts_of_which_rouge_reads_nothing_are_warned_of_once(caplog, monkeypatch):
    monkeypatch.setattr(text.logger, "warning_once", warned := Once())
    metric = load_metric("rouge1")
    assert metric.compute([NEPALI], [NEPALI]) == 0
    assert "Pass tokenizer= a function" in warned.said[0]
    for latin in ("", "...", "Ünïcode", "un mot और"):
        metric.compute([latin], [latin])
    load_metric("rouge1", tokenizer=str.split).compute([NEPALI], [NEPALI])
    assert len(warned.said) == 1


class Once:
    def __init__(self):
        self.said = []

    def __call__(self, message):
        self.said.append(message)


def test_a_tokenizer_is_a_function_and_part_of_the_signature():
    metric = load_metric("bleu", tokenizer=str.split)
    assert "tokenizer:str.split" in metric.signature
    assert metric_of(metric.signature) is None  # as of other functions, a name is not enough
    assert "tokenizer" not in load_metric("bleu").signature  # by which those are known that were saved without it
    for name in ("rougeL", "bleu", "google_bleu", "meteor"):
        with pytest.raises(ValueError, match=f"{name}: tokenizer is a function .*, but got 'split'"):
            load_metric(name, tokenizer="split")
