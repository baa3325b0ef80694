"""METEOR is NLTK's."""

import nltk.corpus
import pytest
from hypothesis import given, settings
from nltk.translate.meteor_score import meteor_score

from hf_reloss import load_metric

from .test_text import corpora


class Synset:
    def __init__(self, *words):
        self.words = words

    def lemmas(self):
        return [type("Lemma", (), {"name": lambda lemma, word=word: word})() for word in self.words]


class WordNet:
    """As much of NLTK's reader as METEOR asks."""

    synonyms = (Synset("cat", "mat", "feline"), Synset("running", "jogging"), Synset("on", "upon"))

    def __init__(self):
        self.asked = []

    def synsets(self, word):
        self.asked.append(word)
        return [synset for synset in self.synonyms if word in synset.words]


@settings(deadline=None, max_examples=60)
@given(corpora())
def test_it_is_the_mean_of_what_nltk_says_of_each(corpus):
    predictions, references = corpus
    reader = WordNet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.corpus, "wordnet", reader)
        for synonyms, options in ((True, {}), (False, {"alpha": 0.7, "beta": 2.0, "gamma": 0.3})):
            wordnet = reader if synonyms else type("Empty", (), {"synsets": staticmethod(lambda word: ())})
            theirs = [
                meteor_score([text.split() for text in given], prediction.split(), wordnet=wordnet, **options)
                for prediction, given in zip(predictions, references, strict=True)
            ]
            metric = load_metric("meteor", tokenizer=str.split, synonyms=synonyms, **options)
            assert metric.compute(predictions, references) == pytest.approx(sum(theirs) / len(theirs), abs=1e-12)


def test_each_word_is_looked_up_once(monkeypatch):
    monkeypatch.setattr(nltk.corpus, "wordnet", reader := WordNet())
    metric = load_metric("meteor", tokenizer=str.split)
    with_synonyms = metric.compute(["a cat on it"] * 3, ["the mat upon it"] * 3)
    assert len(reader.asked) == len(set(reader.asked))
    assert with_synonyms > load_metric("meteor", tokenizer=str.split, synonyms=False).compute(
        ["a cat on it"], ["the mat upon it"]
    )


def test_data_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LookupError, match=r"nltk\.download\('punkt_tab'\)"):
        load_metric("meteor").compute(["a cat"], ["the cat"])
