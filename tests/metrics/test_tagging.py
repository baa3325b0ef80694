import warnings
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from seqeval import metrics
from seqeval import scheme as schemes

from hf_reloss.metrics import load_metric
from hf_reloss.metrics.tagging import SCHEMES

THEIRS = {
    "seqeval": partial(metrics.f1_score, zero_division=0),
    "seqeval_precision": partial(metrics.precision_score, zero_division=0),
    "seqeval_recall": partial(metrics.recall_score, zero_division=0),
}
PREFIXES = {"IOB1": "IB", "IOB2": "IB", "IOE1": "IE", "IOE2": "IE", "IOBES": "IBES", "BILOU": "BILU"}
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def corpora(prefixes, suffix=False):
    """Predictions and references: sentences of any tags in any order, as an untrained model puts them out."""
    types = ["PER", "LOC", "MISC-x"]
    tags = [
        "O",
        *([f"{t}-{p}" for t in types for p in prefixes] if suffix else [f"{p}-{t}" for t in types for p in prefixes]),
    ]
    # Some positions are tagged alike, so that some entities are right.
    pair = st.sampled_from(tags).map(lambda tag: (tag, tag)) | st.tuples(st.sampled_from(tags), st.sampled_from(tags))
    sentences = st.lists(st.lists(pair, max_size=8), min_size=1, max_size=6)
    return sentences.map(lambda s: tuple([[pair[i] for pair in sentence] for sentence in s] for i in (0, 1)))


def check_all(corpora, options, their_options):
    """All three scores of random corpora are those of seqeval."""
    ours = {name: load_metric(name, **options) for name in THEIRS}

    @settings(max_examples=60, deadline=None)
    @given(corpora)
    def check(corpus):
        predictions, references = corpus
        for name, theirs in THEIRS.items():
            expected = theirs(references, predictions, **their_options)
            assert ours[name].compute(predictions, references) == pytest.approx(expected, abs=1e-9)

    check()


@pytest.mark.parametrize("suffix", [False, True])
def test_equals_seqeval_by_default(suffix):
    check_all(corpora("IBES", suffix), {"suffix": suffix}, {"suffix": suffix})


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("kind", SCHEMES)
def test_equals_seqeval_in_strict_mode(kind, suffix):
    options = {"mode": "strict", "scheme": kind, "suffix": suffix}
    check_all(corpora(PREFIXES[kind], suffix), options, {**options, "scheme": getattr(schemes, kind)})


def test_strict_mode_leaves_out_what_breaks_the_scheme():
    predictions, references = [["I-PER", "O", "B-LOC"]], [["B-PER", "O", "B-LOC"]]
    assert load_metric("seqeval").statistics(predictions, references).tolist() == [[2, 2, 2]]
    strict = load_metric("seqeval", mode="strict", scheme="IOB2")
    assert strict.statistics(predictions, references).tolist() == [[1, 1, 2]]


def test_a_scheme_has_no_effect_outside_strict_mode():
    predictions, references = [["I-PER", "O"]], [["B-PER", "O"]]
    assert load_metric("seqeval", scheme="IOB2").compute(predictions, references) == 1
    assert metrics.f1_score(references, predictions, scheme=schemes.IOB2) == 1


@pytest.mark.parametrize("name", THEIRS)
def test_no_entities_score_zero_without_warning(name):
    metric = load_metric(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute([["O", "O"], []], [["O", "O"], []]) == 0
    assert metric.score([[[0, 0, 0], [1, 2, 4]]]).tolist() == [[0, metric.score([1, 2, 4])]]
    assert metric.statistics([], []).shape == (0, 3)


def test_strange_tags_are_warned_of_by_seqeval():
    with pytest.warns(UserWarning, match="PERSON seems not to be NE tag"):
        load_metric("seqeval").compute([["PERSON", "O"]], [["B-PER", "O"]])


def padded(n=60, length=9, seed=0):
    """Logits [N, T, C], labels [N, T] with -100, and the same as lists of tags."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(LABELS), (n, length), generator=generator)
    logits = torch.randn(n, length, len(LABELS), generator=generator)
    logits += 2 * torch.nn.functional.one_hot(labels, len(LABELS))
    labels[torch.rand(n, length, generator=generator) < 0.3] = -100
    tags = [[], []]
    for row in range(n):
        counts = labels[row] != -100
        tags[0].append([LABELS[i] for i in logits[row, counts].argmax(-1)])
        tags[1].append([LABELS[i] for i in labels[row, counts]])
    return logits, labels, *tags


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits,
        lambda logits: logits.numpy(),
        lambda logits: logits.argmax(-1),
        lambda logits: logits.argmax(-1).tolist(),
    ],
)
@pytest.mark.parametrize("name", THEIRS)
def test_class_indices_and_logits_are_scored_as_their_tags(name, form):
    logits, labels, predictions, references = padded()
    expected = THEIRS[name](references, predictions)
    assert 0.3 < expected < 0.95
    ours = load_metric(name, label_names=LABELS).compute(form(logits), labels)
    assert ours == pytest.approx(expected, abs=1e-9)


def test_predictions_may_be_anything_where_references_are_ignored():
    metric = load_metric("seqeval", label_names=LABELS)
    assert metric.compute([[1, -100, 2]], [[1, -100, 2]]) == 1
    assert load_metric("seqeval").compute([["B-PER", "x", "I-PER"]], [["B-PER", -100, "I-PER"]]) == 1


@pytest.mark.parametrize("name", THEIRS)
def test_group_scores_equal_compute_on_the_same_subset(name):
    logits, labels, *_ = padded()
    index = torch.randint(len(labels), (30, 5))
    metric = load_metric(name, label_names=LABELS)
    scores = metric.score_groups(metric.decide(logits), labels, index)
    expected = [metric.compute(logits[rows], labels[rows]) for rows in index]
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 5


class Module:
    """Takes what `evaluate.load("seqeval")` does."""

    def compute(self, predictions, references, scheme, mode):
        scheme = getattr(schemes, scheme)
        return {
            f"overall_{key}": getattr(metrics, f"{key}_score")(references, predictions, mode=mode, scheme=scheme)
            for key in ("f1", "precision", "recall")
        }


@pytest.mark.parametrize("name", THEIRS)
def test_is_checked_against_evaluate_with_tags_in_place_of_class_indices(name):
    logits, labels, *_ = padded()
    metric = load_metric(name, label_names=LABELS, mode="strict", scheme="IOB2")
    assert metric.check_against(Module(), logits, labels) == pytest.approx(0, abs=1e-9)
    assert metric.evaluate_module == "seqeval"


def test_the_signature_names_options_and_the_version_of_seqeval():
    signature = load_metric("seqeval", mode="strict", scheme="IOB2").signature
    assert "scheme:IOB2|mode:strict" in signature
    assert "|seqeval:1." in signature


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "strict"}, "wants a scheme in strict mode"),
        ({"mode": "exact"}, "mode is None or 'strict', but got 'exact'"),
        ({"scheme": "BIOES"}, "scheme is one of IOB1, IOB2, IOE1, IOE2, IOBES, BILOU, but got 'BIOES'"),
    ],
)
def test_other_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_metric("seqeval", **options)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([["O"]], [["O"], ["O"]], "1 predictions and 2 references"),
        ([["O"], ["O", "O"]], [["O"], ["O"]], "sentence 1 has 2 predicted tags and 1 true ones"),
        (["O", "O"], ["O", "O"], "a list of tags for each sentence, but sentence 0 has 'O' predicted"),
        ([1, 0], [1, 0], "a list of tags for each sentence"),
        ([[1, 0]], [[1, 0]], "Pass label_names"),
        ([["O", None]], [["O", "O"]], "tags such as 'B-PER', but got None"),
    ],
)
def test_what_is_not_tags_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        load_metric("seqeval").compute(predictions, references)


@pytest.mark.parametrize("index", [-1, 5, 0.5, None])
def test_class_indices_without_a_name_are_refused(index):
    with pytest.raises(
        ValueError, match=f"class indices from 0 to 4, which have a name in label_names, but got {index}"
    ):
        load_metric("seqeval", label_names=LABELS).compute([[0, index]], [[0, 0]])


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="sentence 0 has 4 predicted tags and 3 true ones"):
        load_metric("seqeval", label_names=LABELS).compute(np.zeros((2, 4, 5)), np.zeros((2, 3), int))
