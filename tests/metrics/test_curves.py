import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings

from hf_reloss.metrics import load_metric

THEIRS = {"roc_auc": sklearn.metrics.roc_auc_score, "average_precision": sklearn.metrics.average_precision_score}
both = pytest.mark.parametrize("name", THEIRS)


def scikit_learn(name, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return THEIRS[name](*args, **options)


@both
@given(
    st.lists(
        st.tuples(st.sampled_from([-1e30, -2.0, 0.0, 0.5, 0.5 + 1e-9, 3.0, 1e30]), st.sampled_from([-100, 0, 1])),
        min_size=1,
    )
)
@settings(deadline=None)
def test_scores_of_two_classes_equal_scikit_learn_also_with_ties(name, rows):
    scores, references = (np.array(column) for column in zip(*rows, strict=True))
    counts = references != -100
    ours = load_metric(name).compute(scores, references)
    if not counts.any():
        assert math.isnan(ours)
    else:
        theirs = scikit_learn(name, references[counts], scores[counts])
        assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@both
@given(st.integers(0, 10_000), st.sampled_from(["macro", "weighted"]))
@settings(max_examples=40, deadline=None)
def test_one_class_against_the_rest_equals_scikit_learn(name, seed, average):
    generator = np.random.default_rng(seed)
    logits = generator.integers(-2, 3, (30, 4)).astype(float)
    references = np.concatenate([np.arange(4), generator.integers(0, 4, 26)])
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    options = {"multi_class": "ovr"} if name == "roc_auc" else {}
    theirs = scikit_learn(name, references, probabilities, average=average, **options)
    metric = load_metric(name, average=average)
    assert metric.compute(logits, references) == pytest.approx(theirs, abs=1e-9)
    assert metric.compute(probabilities, references) == pytest.approx(theirs, abs=1e-9)


@both
@given(st.integers(0, 10_000), st.sampled_from(["macro", "weighted", "micro", "samples"]))
@settings(max_examples=40, deadline=None)
def test_several_labels_equal_scikit_learn(name, seed, average):
    generator = np.random.default_rng(seed)
    scores = generator.integers(-3, 4, (20, 3)).astype(float)
    references = generator.integers(0, 2, (20, 3))
    if average == "samples":  # each with a label and without one
        references[:, 0], references[:, 1] = 0, 1
    else:
        references[0], references[1] = 0, 1
    theirs = scikit_learn(name, references, scores, average=average)
    assert load_metric(name, average=average).compute(scores, references) == pytest.approx(theirs, abs=1e-9)


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.3, 0.5, 0.99, 1.0]), st.integers(3, 40))
@settings(max_examples=60, deadline=None)
def test_the_first_part_of_the_curve_is_that_of_scikit_learn(seed, max_fpr, size):
    generator = np.random.default_rng(seed)
    scores, references = generator.integers(-3, 4, size).astype(float), generator.choice([-100, 0, 1], size)
    references[:2] = 0, 1
    counts = references != -100
    theirs = sklearn.metrics.roc_auc_score(references[counts], scores[counts], max_fpr=max_fpr)
    assert load_metric("roc_auc", max_fpr=max_fpr).compute(scores, references) == pytest.approx(theirs, abs=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(["macro", "weighted"]))
@settings(max_examples=40, deadline=None)
def test_one_class_against_another_equals_scikit_learn(seed, average):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.integers(-2, 3, (30, 4)).astype(float))
    references = generator.integers(0, 4, 30)
    references[:4] = range(4)
    if seed % 3 == 0:
        references[references == 2] = 0  # a class that does not occur
    theirs = sklearn.metrics.roc_auc_score(
        references, logits.softmax(-1), multi_class="ovo", average=average, labels=range(4)
    )
    metric = load_metric("roc_auc", multi_class="ovo", average=average)
    assert metric.compute(logits, references) == pytest.approx(theirs, abs=1e-9)
    index = torch.randint(30, (4, 12))
    hidden = torch.tensor(references).where(torch.arange(30) % 5 > 0, -100)
    alone = [metric.compute(logits[rows], hidden[rows]) for rows in index]
    assert metric.score_groups(logits, hidden, index).tolist() == pytest.approx(alone, abs=1e-12, nan_ok=True)


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.5, 0.9, 1.0]), st.integers(2, 30))
@settings(max_examples=60, deadline=None)
def test_precision_at_a_recall_is_the_best_of_the_curve_there(seed, min_recall, size):
    generator = np.random.default_rng(seed)
    scores, references = generator.integers(-3, 4, size).astype(float), generator.choice([-100, 0, 1], size)
    references[0] = 1
    counts = references != -100
    precision, recall, _ = sklearn.metrics.precision_recall_curve(references[counts], scores[counts])
    found = load_metric("precision_at_recall", min_recall=min_recall).compute(scores, references)
    assert found == pytest.approx(precision[recall >= min_recall].max(), abs=1e-9)


def test_two_logits_are_a_score_for_the_second_class():
    logits, references = torch.randn(40, 2), torch.randint(2, (40,))
    theirs = sklearn.metrics.roc_auc_score(references, logits[:, 1] - logits[:, 0])
    assert load_metric("roc_auc").compute(logits, references) == pytest.approx(theirs, abs=1e-9)
    # The probabilities of these are all 1, rounded.
    assert load_metric("roc_auc").compute([[0.0, 60.0], [0.0, 61.0], [0.0, 62.0]], [0, 0, 1]) == 1.0


@both
def test_classes_that_are_not_due_in_the_group_are_left_out(name):
    logits = torch.randn(12, 3)
    references = torch.arange(12) % 2
    alone = [load_metric(name).compute(logits.softmax(-1)[:, k], (references == k).long()) for k in (0, 1)]
    assert load_metric(name).compute(logits, references) == pytest.approx(np.mean(alone), abs=1e-12)


@both
@pytest.mark.parametrize("shape", [(40,), (40, 2), (40, 5)])
def test_group_scores_equal_compute_on_the_same_subset(name, shape):
    predictions, references = torch.randn(shape), torch.randint(2 if len(shape) == 1 else shape[1], (40,))
    references[::7] = -100
    index = torch.randint(40, (5, 15))
    metric = load_metric(name)
    expected = [metric.compute(predictions[rows], references[rows]) for rows in index]
    scores = metric.score_groups(metric.decide(predictions), references, index)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)


@both
def test_infinite_scores_rank_first_and_last(name):
    finite = load_metric(name).compute([9.0, 0.1, 0.2, -9.0, 0.3], [1, 0, -100, 1, 0])
    infinite = load_metric(name).compute([torch.inf, 0.1, 0.2, -torch.inf, 0.3], [1, 0, -100, 1, 0])
    assert infinite == finite < 1


def test_rounded_probabilities_are_taken_for_probabilities():
    probabilities, references = (3 * torch.randn(60, 5)).softmax(-1).bfloat16(), torch.arange(60) % 5
    theirs = np.mean([sklearn.metrics.roc_auc_score(references == k, probabilities[:, k].float()) for k in range(5)])
    assert load_metric("roc_auc").compute(probabilities, references) == pytest.approx(theirs, abs=1e-9)


def test_it_is_checked_against_a_module_that_takes_prediction_scores():
    class Module:
        @staticmethod
        def compute(prediction_scores, references, **options):
            return {"roc_auc": sklearn.metrics.roc_auc_score(references, prediction_scores, **options)}

    references = torch.arange(30) % 3
    for logits, labels in (
        (torch.randn(30, 3), references),
        (torch.randn(30, 2), references % 2),
        (torch.randn(30), references % 2),
    ):
        for options in ({}, {"average": "weighted"}, {"multi_class": "ovo"}):
            difference = load_metric("roc_auc", **options).check_against(Module, logits, labels)
            assert difference == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="cannot rank scores that are nan"):
        load_metric("roc_auc").compute([0.1, np.nan, 0.3], [0, 1, 0])
    with pytest.raises(ValueError, match="average is one of macro, weighted, micro, samples, but got None"):
        load_metric("roc_auc", average=None)
    for options, message in (
        ({"max_fpr": 0}, "above 0 and at most 1, but got 0"),
        ({"multi_class": "raise"}, "'ovr' or 'ovo', but got 'raise'"),
        ({"multi_class": "ovo", "average": "micro"}, "with 'ovo', average is 'macro' or 'weighted', but got 'micro'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_metric("roc_auc", **options)
    with pytest.raises(ValueError, match=r"above 0 and at most 1, but got 1\.5"):
        load_metric("precision_at_recall", min_recall=1.5)
    with pytest.raises(ValueError, match="wants scores"):
        load_metric("roc_auc").compute(torch.randn(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="3 predictions and 2 references"):
        load_metric("average_precision").compute([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(ValueError, match="references 0 to 1, but got 2"):
        load_metric("roc_auc").compute([0.1, 0.2, 0.3], [0, 1, 2])
