import itertools
import math

import hypothesis.strategies as st
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.gleu_score import corpus_gleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_reloss import load_metric
from hf_reloss.metrics.translation import Bleu, ChrF, SacreBleu, TranslationEditRate

from .test_text import PREDICTIONS, REFERENCES, corpora, official, same


def streams(references):
    """References as sacrebleu takes them: the first of all predictions, and so on."""
    return list(itertools.zip_longest(*references))


def brute_force_bleu(predictions, references, max_order=4, smooth=False):
    """BLEU as TensorFlow NMT defines it, n-gram by n-gram."""
    tokenize = Tokenizer13a()

    def ngrams(tokens, order):
        return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]

    ours = [tokenize(prediction).split() for prediction in predictions]
    theirs = [[tokenize(reference).split() for reference in accepted] for accepted in references]
    length = sum(map(len, ours))
    due = sum(min(map(len, accepted)) for accepted in theirs)
    precisions = []
    for order in range(1, max_order + 1):
        matches = total = 0
        for prediction, accepted in zip(ours, theirs, strict=True):
            found = ngrams(prediction, order)
            total += len(found)
            for ngram in set(found):
                allowed = max(ngrams(reference, order).count(ngram) for reference in accepted)
                matches += min(found.count(ngram), allowed)
        precisions.append((matches + smooth) / (total + smooth) if total + smooth else 0)
    if length == 0:
        return 0.0 if due else math.nan
    brevity_penalty = math.exp(1 - due / length) if length <= due else 1
    return brevity_penalty * math.prod(precisions) ** (1 / max_order)


@settings(max_examples=150)
@given(corpora(), st.integers(1, 5), st.booleans())
def test_bleu_equals_brute_force(corpus, max_order, smooth):
    assert same(Bleu(max_order, smooth).compute(*corpus), brute_force_bleu(*corpus, max_order, smooth))


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 3), st.integers(0, 3), st.sampled_from([None, str.split, list]))
def test_google_bleu_equals_nltk(corpus, min_len, more, tokenizer):
    predictions, references = corpus
    split = tokenizer or (lambda text: Tokenizer13a()(text).split())
    theirs = corpus_gleu(
        [[split(text) for text in given] for given in references],
        [split(text) for text in predictions],
        min_len,
        min_len + more,
    )
    ours = load_metric("google_bleu", tokenizer=tokenizer, min_len=min_len, max_len=min_len + more)
    assert same(ours.compute(predictions, references), theirs)


def test_google_bleu_wants_orders_in_their_order():
    with pytest.raises(ValueError, match="max_len that or more, but got 3 and 2"):
        load_metric("google_bleu", min_len=3, max_len=2)


# In shorter ones NLTK counts an n-gram that there is not.
@pytest.mark.filterwarnings("ignore:(?s).*overlaps")
@given(st.lists(st.tuples(*[st.lists(st.sampled_from("abcd"), min_size=4, max_size=12)] * 2), min_size=1, max_size=6))
def test_bleu_of_single_references_equals_nltk(pairs):
    predictions, references = zip(*pairs, strict=True)
    theirs = corpus_bleu([[reference] for reference in references], predictions)
    assert same(Bleu().compute(list(map(" ".join, predictions)), list(map(" ".join, references))), theirs)


@given(corpora(most=1))
def test_bleu_of_single_references_is_unsmoothed_sacrebleu(corpus):
    # sacrebleu strips lines first, and then keeps a hyphen at their end.
    predictions, references = [text.rstrip() for text in corpus[0]], [[text.rstrip()] for [text] in corpus[1]]
    theirs = sacrebleu.BLEU(smooth_method="none").corpus_score(predictions, streams(references)).score
    ours = Bleu().compute(predictions, references)
    assert same(100 * ours, theirs) or (math.isnan(ours) and theirs == 0)


def test_bleu_joins_a_word_that_is_hyphenated_at_the_end_of_a_line():
    assert Bleu(max_order=1).compute(["well-\n"], ["well"]) == 1
    assert Bleu(max_order=1).compute(["well"], ["well-\n"]) == 1


def test_bleu_penalizes_what_is_shorter_than_the_shortest_reference():
    prediction, references = "a b c d e", ["a b c d e f g h i j", "a b c d e f"]
    assert Bleu().compute([prediction], [references]) == pytest.approx(math.exp(1 - 6 / 5))
    assert Bleu().compute([prediction], [[*references, "a b"]]) == 1
    assert SacreBleu().compute([prediction], [[*references, "a b"]]) < 100


@pytest.mark.parametrize("smooth_method", ["none", "floor", "add-k", "exp"])
@settings(max_examples=100)
@given(
    corpus=corpora(),
    tokenize=st.sampled_from([None, "13a", "intl", "char", "zh", "none"]),
    smooth_value=st.sampled_from([None, 0.3, 2]),
    lowercase=st.booleans(),
    effective=st.booleans(),
)
def test_sacrebleu_equals_its_library(smooth_method, corpus, tokenize, smooth_value, lowercase, effective):
    predictions, references = corpus
    options = {"smooth_method": smooth_method, "smooth_value": smooth_value, "lowercase": lowercase, "force": True}
    theirs = sacrebleu.BLEU(**options, tokenize=tokenize, effective_order=effective)
    ours = SacreBleu(**options, tokenize=tokenize, use_effective_order=effective)
    assert same(ours.compute(predictions, references), theirs.corpus_score(predictions, streams(references)).score)


@settings(max_examples=150)
@given(
    corpus=corpora(),
    options=st.fixed_dictionaries(
        {
            "char_order": st.sampled_from([6, 2]),
            "word_order": st.sampled_from([0, 2]),
            "beta": st.sampled_from([1, 2, 3]),
            "lowercase": st.booleans(),
            "whitespace": st.booleans(),
            "eps_smoothing": st.booleans(),
        }
    ),
)
def test_chrf_equals_sacrebleu(corpus, options):
    predictions, references = corpus
    theirs = sacrebleu.CHRF(**options).corpus_score(predictions, streams(references)).score
    assert same(ChrF(**options).compute(predictions, references), theirs)


@settings(max_examples=150)
@given(corpora(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_ter_equals_sacrebleu(corpus, normalized, punct, asian, case_sensitive):
    predictions, references = corpus
    theirs = sacrebleu.TER(normalized, punct, asian, case_sensitive).corpus_score(predictions, streams(references))
    assert same(
        TranslationEditRate(normalized, punct, asian, case_sensitive).compute(predictions, references), theirs.score
    )


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "metric",
    [
        SacreBleu(),
        *(SacreBleu(method, use_effective_order=True) for method in SacreBleu.smooth_values),
        ChrF(word_order=2),
        ChrF(eps_smoothing=True),
        TranslationEditRate(),
    ],
    ids=lambda metric: metric.signature,
)
def test_scores_of_many_groups_are_those_of_sacrebleu_of_each(metric, size):
    index = torch.randint(len(PREDICTIONS), (20, size))
    for score, rows in zip(metric.score_groups(PREDICTIONS, REFERENCES, index), index.tolist(), strict=True):
        group = [PREDICTIONS[row] for row in rows], [[REFERENCES[row] for row in rows]]
        assert same(score.item(), metric.scorer.corpus_score(*group).score)


def test_options_that_sacrebleu_does_not_know_are_refused():
    with pytest.raises(ValueError, match="smooth_method is one of none, floor, add-k, exp, but got 'laplace'"):
        SacreBleu(smooth_method="laplace")
    with pytest.raises(ValueError, match=r"tokenize is one of none, zh, 13a, .*, but got '13A'"):
        SacreBleu(tokenize="13A").compute(["a"], ["a"])


def test_default_smoothing_values_are_those_of_sacrebleu():
    assert SacreBleu.smooth_values == sacrebleu.BLEU.SMOOTH_DEFAULTS


def ter(predictions, references, ignore_punct, support_zh_ja_chars):
    metric = sacrebleu.TER(no_punct=ignore_punct, asian_support=support_zh_ja_chars)
    return {"score": metric.corpus_score(predictions, streams(references)).score}


@pytest.mark.parametrize(
    ("metric", "key", "function"),
    [
        (Bleu(smooth=True), "bleu", lambda **given: {"bleu": brute_force_bleu(**given)}),
        (
            SacreBleu("floor", use_effective_order=True),
            "score",
            lambda predictions, references, **options: {
                "score": sacrebleu.corpus_bleu(predictions, streams(references), **options).score
            },
        ),
        (
            ChrF(word_order=2),
            "score",
            lambda predictions, references, **options: {
                "score": sacrebleu.corpus_chrf(predictions, streams(references), **options).score
            },
        ),
        (TranslationEditRate(ignore_punct=True, support_zh_ja_chars=True), "score", ter),
    ],
    ids=["bleu", "sacrebleu", "chrf", "ter"],
)
def test_translations_are_checked_against_evaluate(metric, key, function):
    assert metric.evaluate_key == key
    assert metric.compute(PREDICTIONS, REFERENCES) > 0
    assert same(metric.check_against(official(True, function), PREDICTIONS, REFERENCES), 0)
