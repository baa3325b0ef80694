import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings

from hf_reloss.metrics import load_metric
from hf_reloss.metrics.base import AdditiveMetric

AVERAGES = ("micro", "macro", "weighted")
REFERENCES = {  # ours, scikit-learn's, and the options of both
    "accuracy": (sklearn.metrics.accuracy_score, [{}]),
    "balanced_accuracy": (sklearn.metrics.balanced_accuracy_score, [{}, {"adjusted": True}]),
    "matthews_correlation": (sklearn.metrics.matthews_corrcoef, [{}]),
    "cohen_kappa": (
        sklearn.metrics.cohen_kappa_score,
        [{"weights": None}, {"weights": "linear"}, {"weights": "quadratic"}],
    ),
    **{
        name: (
            getattr(sklearn.metrics, f"{name}_score"),
            [{"average": average, "zero_division": value} for average in AVERAGES for value in (0.0, 1.0)]
            + [{"average": average, "labels": [3, 1, 7]} for average in AVERAGES],
        )
        for name in ("precision", "recall", "f1")
    },
    "fbeta": (
        sklearn.metrics.fbeta_score,
        [{"average": average, "beta": beta} for average in AVERAGES for beta in (0.0, 0.5, 2.0)],
    ),
}
CASES = [
    pytest.param(name, function, options, id=f"{name}-{options}")
    for name, (function, cases) in REFERENCES.items()
    for options in cases
]

# One class only, classes that are never predicted or never due, all ignored: small ranges make all of them likely.
pairs = st.integers(1, 8).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.sampled_from([-100, *range(classes)])), min_size=1, max_size=40
    )
)


def columns(rows):
    predictions, references = (np.array(column) for column in zip(*rows, strict=True))
    return predictions, references, references != -100


def scikit_learn(function, references, predictions, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(references, predictions, **options)


@pytest.mark.parametrize(("name", "function", "options"), CASES)
@given(pairs)
@settings(max_examples=60, deadline=None)
def test_scores_equal_scikit_learn(name, function, options, rows):
    predictions, references, counts = columns(rows)
    metric = load_metric(name, **options)
    ours = metric.compute(predictions, references)
    if not counts.any():
        assert math.isnan(ours)
        return
    kept = references[counts], predictions[counts]
    if "labels" in options and not set(options["labels"]) & set(kept[0]):
        return  # scikit-learn refuses
    assert ours == pytest.approx(scikit_learn(function, *kept, **options), abs=1e-9, nan_ok=True)
    # The same from statistics, however they are added up.
    statistics = metric.statistics(predictions, references)
    assert statistics.dtype == torch.float64
    assert (statistics[~torch.from_numpy(counts)] == 0).all()
    assert float(metric.score(statistics.numpy().sum(0))) == pytest.approx(ours, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20), st.integers(0, 1))
def test_binary_averages_equal_scikit_learn(name, rows, positive):
    predictions, references, _ = columns(rows)
    function = getattr(sklearn.metrics, f"{name}_score")
    if len({*predictions, *references}) == 1:
        positive = 1  # scikit-learn takes the class that is there for the positive one, whatever it is called
    theirs = scikit_learn(function, references, predictions, pos_label=positive, zero_division=0)
    assert load_metric(name, pos_label=positive).compute(predictions, references) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_multi_label_scores_equal_scikit_learn(name, average, seed, labels, threshold):
    generator = np.random.default_rng(seed)
    # Two columns at least: scikit-learn takes one column for a binary task.
    logits = generator.normal(size=(6, labels + 1))
    references = (generator.random(logits.shape) < generator.random()).astype(int)
    decided = (1 / (1 + np.exp(-logits)) > threshold).astype(int)
    metric = load_metric(name, average=average, threshold=threshold)
    theirs = scikit_learn(
        getattr(sklearn.metrics, f"{name}_score"), references, decided, average=average, zero_division=0
    )
    for predictions in (logits, decided):
        assert metric.compute(predictions, references) == pytest.approx(theirs, abs=1e-9)
    assert float(metric.score(metric.statistics(logits, references).sum(0))) == pytest.approx(theirs, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(deadline=None)
def test_top_k_accuracy_equals_scikit_learn_also_with_ties(seed, k):
    generator = np.random.default_rng(seed)
    logits = generator.integers(0, 4, (20, 5)).astype(float)
    references = generator.integers(0, 5, 20)
    theirs = scikit_learn(sklearn.metrics.top_k_accuracy_score, references, logits, k=k, labels=range(5))
    assert load_metric("top_k_accuracy", k=k).compute(logits, references) == pytest.approx(theirs, abs=1e-12)


def test_logits_are_decided_as_argmax_does():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert load_metric("accuracy").compute(logits, torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)


ADDITIVE = [
    ("accuracy", {}),
    ("top_k_accuracy", {"k": 2}),
    ("f1", {"average": "macro"}),
    ("precision", {"average": "weighted"}),
    ("recall", {"average": "micro"}),
    ("fbeta", {"average": "macro", "beta": 2.0}),
    ("balanced_accuracy", {}),
    ("matthews_correlation", {}),
    ("cohen_kappa", {"weights": "quadratic"}),
]


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_group_scores_equal_compute_on_the_same_subset(name, options, seed):
    generator = torch.Generator().manual_seed(seed)
    metric = load_metric(name, **options)
    logits = torch.randn(30, 5, generator=generator)
    references = torch.randint(5, (30,), generator=generator)
    references[::6] = -100
    index = torch.randint(30, (6, 9), generator=generator)
    expected = pytest.approx([metric.compute(logits[rows], references[rows]) for rows in index], abs=1e-12, nan_ok=True)
    scores = metric.score_groups(metric.decide(logits), references, index)
    assert scores.dtype == torch.float64
    assert scores.tolist() == expected
    assert metric.score(metric.statistics(logits, references)[index].sum(1)).tolist() == expected
    assert AdditiveMetric.score_groups(metric, logits, references, index).tolist() == expected


@pytest.mark.parametrize(("name", "options"), ADDITIVE)
def test_positions_of_sequences_count_alike(name, options):
    logits, references = torch.randn(6, 7, 5), torch.randint(5, (6, 7))
    references[:, 4:] = -100
    metric = load_metric(name, **options)
    flat = metric.compute(logits.flatten(0, 1), references.flatten())
    assert metric.compute(logits, references) == pytest.approx(flat, abs=1e-12)
    index = torch.tensor([[0, 2, 4], [1, 1, 5]])
    expected = [metric.compute(logits[rows], references[rows]) for rows in index]
    assert metric.score_groups(logits, references, index).tolist() == pytest.approx(expected, abs=1e-12)


def test_statistics_of_logits_have_a_column_for_each_class_that_is_never_seen():
    metric = load_metric("f1", average="macro")
    assert metric.statistics(torch.randn(3, 9), [0, 1, 1]).shape == (3, 27)
    assert metric.statistics([0, 0, 2], [0, 1, 1]).shape == (3, 9)
    assert metric.statistics([0.0, 0.0, 2.0, 1.0, 1.0], [0, 1, 1, 0, 0]).shape == (5, 9)


def test_class_indices_of_any_type_are_read():
    expected = load_metric("matthews_correlation").compute([0, 1, 1, 2], [0, 1, 2, 2])
    for dtype in (np.uint8, np.uint16, np.int32, np.float32):
        given = np.array([0, 1, 1, 2], dtype), np.array([0, 1, 2, 2], dtype)
        assert load_metric("matthews_correlation").compute(*given) == expected
    assert math.isnan(load_metric("matthews_correlation").compute([], []))


@pytest.mark.parametrize("name", ["accuracy", "top_k_accuracy", "cohen_kappa", "roc_auc"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_labels_of_a_short_type_are_read_as_they_are(name, dtype):
    logits, labels = torch.randn(20, 200), torch.arange(140, 160)  # in uint8, -100 is 156
    metric = load_metric(name)
    assert metric.compute(logits, labels.to(dtype)) == metric.compute(logits, labels)


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@pytest.mark.parametrize("zero_division", [0.0, 1.0])
def test_averages_over_examples_equal_scikit_learn(name, zero_division):
    generator = np.random.default_rng(0)
    logits, references = generator.normal(size=(60, 4)), (generator.random((60, 4)) < 0.2).astype(int)
    decided = (logits > 0).astype(int)
    metric = load_metric(name, average="samples", threshold=0.5, zero_division=zero_division)
    theirs = getattr(sklearn.metrics, f"{name}_score")
    expected = theirs(references, decided, average="samples", zero_division=zero_division)
    assert metric.compute(logits, references) == pytest.approx(expected, abs=1e-13)
    index = torch.arange(60).view(3, 20)
    parts = [theirs(references[rows], decided[rows], average="samples", zero_division=zero_division) for rows in index]
    assert metric.score_groups(logits, references, index).tolist() == pytest.approx(parts, abs=1e-13)


def test_averages_over_examples_are_of_several_labels():
    with pytest.raises(ValueError, match="is of several labels per example: pass threshold="):
        load_metric("f1", average="samples").compute([0, 1], [1, 1])


def test_examples_of_which_all_labels_are_right_equal_scikit_learn():
    generator = np.random.default_rng(0)
    logits, references = generator.normal(size=(80, 3)) + 0.5, (generator.random((80, 3)) < 0.6).astype(int)
    metric = load_metric("subset_accuracy")
    expected = sklearn.metrics.accuracy_score(references, (logits > 0).astype(int))
    assert metric.compute(logits, references) == pytest.approx(expected, abs=1e-13)
    references[:40] = -100
    assert metric.compute(logits, references) == metric.compute(logits[40:], references[40:])
    with pytest.raises(ValueError, match=r"wants references \[N, L\], 0 and 1, but got \[2\]"):
        metric.compute([0, 1], [1, 1])


def test_labels_that_are_floating_point_are_read_with_a_threshold():
    metric = load_metric("f1", average="macro", threshold=0.9)  # logits above 2.2
    assert metric.compute([[3.0, -1.0], [4.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx((2 / 3 + 1) / 2)
    assert metric.compute([[2.0, -1.0], [2.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx((0 + 1) / 2)


def test_a_threshold_wants_several_labels():
    with pytest.raises(ValueError, match=r"wants references \[N, L\], but got \[2\]"):
        load_metric("f1", threshold=0.5).compute([0.3, -0.2], [1, 0])


def test_logits_that_are_nan_are_wrong():
    assert load_metric("top_k_accuracy", k=1).compute(torch.full((3, 4), torch.nan), [0, 1, 2]) == 0.0
    with pytest.raises(ValueError, match="a reference is 7, of 4 classes"):
        load_metric("top_k_accuracy").compute(torch.zeros(1, 4), [7])


def test_labels_out_of_range_are_among_no_highest_logits():
    metric, logits = load_metric("top_k_accuracy", k=1), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="a reference is -1, of 2 classes"):
        metric.compute(logits, [0, -1])
    assert metric.compute(logits, [0, -100]) == 1.0


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_a_zero_division_of_nan_leaves_classes_out(average):
    options = {"average": average, "zero_division": np.nan}
    for predictions, references in (([0, 2, 2], [0, 2, 2]), ([0, 1, 1], [0, 2, 2]), ([1, 1], [0, 0])):
        for name in ("precision", "recall", "f1"):
            theirs = scikit_learn(getattr(sklearn.metrics, f"{name}_score"), references, predictions, **options)
            ours = load_metric(name, **options).compute(predictions, references)
            assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True), (name, predictions)


def test_half_precision_and_other_integers_are_read():
    logits = torch.randn(20, 4)
    references = torch.randint(4, (20,))
    expected = load_metric("f1", average="macro").compute(logits.bfloat16().float(), references)
    assert load_metric("f1", average="macro").compute(logits.bfloat16(), references.int()) == expected


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_correlation", "cohen_kappa"])
def test_what_cannot_be_read_is_refused(name):
    metric = load_metric(name)
    with pytest.raises(ValueError, match="2 predictions and 3 references"):
        metric.compute([0, 1], [0, 1, 1])
    for names in (["cat", "dog"], np.array(["cat", "dog"]), [["cat"], ["dog"]], [0, "dog"]):
        with pytest.raises(ValueError, match="but got str: map classes to indices"):
            metric.compute(names, [0, 1])
    with pytest.raises(ValueError, match="but got NoneType"):
        metric.compute([0, None], [0, 1])
    with pytest.raises(ValueError, match="lists of different lengths"):
        metric.compute([[0.1, 0.2], [0.3]], [0, 1])
    with pytest.raises(ValueError, match=r"predictions \[2\] for references \[2, 2\]"):
        metric.compute([0, 1], [[0, 1], [1, 1]])
    with pytest.raises(ValueError, match="wants class indices as references"):
        metric.compute([0, 1], [0.5, 1.0])
    with pytest.raises(ValueError, match="one logit per class"):
        metric.compute([[0.5], [1.0]], [0, 1])


def test_negative_classes_are_refused():
    for name in ("matthews_correlation", "cohen_kappa"):
        with pytest.raises(ValueError, match="0 or more"):
            load_metric(name).compute([0, -1], [0, 1])


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="average is one of"):
        load_metric("f1", average="makro")
    with pytest.raises(ValueError, match="average='binary' scores one of two classes, but there are 3"):
        load_metric("f1").compute([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="1 or more"):
        load_metric("top_k_accuracy", k=0)
    with pytest.raises(ValueError, match="wants logits"):
        load_metric("top_k_accuracy").compute([1, 2], [1, 2])
    with pytest.raises(ValueError, match="linear"):
        load_metric("cohen_kappa", weights="cubic")
    with pytest.raises(ValueError, match="beta"):
        load_metric("fbeta", beta=-1.0)


def test_scores_of_soft_counts_have_gradients():
    for name in ("f1", "balanced_accuracy", "matthews_correlation"):
        metric = load_metric(name, **({"average": "macro"} if name == "f1" else {}))
        counts = torch.tensor([1.5, 2.0, 0.1, 3.0, 2.5, 0.5, 2.0, 3.0, 1.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(metric.score, (counts,))
