import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings

from hf_reloss.metrics import load_metric

THEIRS = {
    "mean_iou": lambda true, decided: sklearn.metrics.jaccard_score(true, decided, average="macro"),
    "dice": lambda true, decided: sklearn.metrics.f1_score(true, decided, average="macro"),
    "pixel_accuracy": sklearn.metrics.accuracy_score,
}


@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans(), st.sampled_from(list(THEIRS)))
@settings(max_examples=80, deadline=None)
def test_it_is_the_score_of_scikit_learn_of_the_pixels_that_count(seed, classes, reduced, name):
    generator = np.random.default_rng(seed)
    references = generator.choice([255, -100, *range(classes)], (4, 3, 5))
    predictions = generator.integers(0, classes, references.shape)
    true = references.copy()
    if reduced:
        true = np.where(true == 0, 255, np.where(true < 255, true - 1, true))
    counts = (true != 255) & (references != -100)
    metric = load_metric(name, reduce_labels=reduced)
    ours = metric.compute(predictions, references)
    halves = metric.statistics(predictions[:2], references[:2]), metric.statistics(predictions[2:], references[2:])
    width = 3 * classes
    sums = sum(_widened(half.sum(0), width) for half in halves)  # which of the classes a half has is chance
    assert float(metric.score(sums)) == pytest.approx(ours, abs=1e-12, nan_ok=True)
    if counts.any():
        assert ours == pytest.approx(THEIRS[name](true[counts], predictions[counts]), abs=1e-9)
    else:
        assert np.isnan(ours)


def _widened(sums, width):
    parts = sums.view(3, -1)
    return torch.cat([parts, parts.new_zeros(3, width // 3 - parts.shape[1])], dim=1).flatten()


@pytest.mark.parametrize("name", THEIRS)
def test_images_may_be_of_different_sizes(name):
    sizes = [(3, 5), (6, 2), (4, 4)]
    logits, references = [torch.randn(4, *size) for size in sizes], [torch.randint(4, size) for size in sizes]
    references[1][0] = 255
    metric = load_metric(name)
    flat = torch.cat([each.flatten() for each in references])
    decided = torch.cat([each.argmax(0).flatten() for each in logits])[flat != 255]
    expected = THEIRS[name](flat[flat != 255], decided)
    assert metric.compute(logits, references) == pytest.approx(expected, abs=1e-9)
    maps = [each.argmax(0).numpy() for each in logits]
    assert metric.compute(maps, [each.numpy() for each in references]) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match=r"an image has predictions \[5, 3\] for references \[3, 5\]"):
        metric.compute([maps[0].T, *maps[1:]], references)
    with pytest.raises(ValueError, match="2 predictions and 3 references"):
        metric.compute(maps[:2], references)


def test_labels_that_are_no_class_are_refused():
    references = torch.randint(4, (2, 3, 3))
    references[0, 0, 0] = 11
    for metric, predictions in (
        (load_metric("dice"), torch.randn(2, 4, 3, 3)),
        (load_metric("mean_iou", num_labels=4), torch.randint(4, (2, 3, 3))),
    ):
        with pytest.raises(ValueError, match=r"is of 4 classes, 0 to 3, but references hold 11: set num_labels, or"):
            metric.compute(predictions, references)
    assert load_metric("dice", ignore_index=11, num_labels=4).compute(references % 4, references) == 1
    with pytest.raises(ValueError, match="but predictions hold 3"):
        load_metric("pixel_accuracy", num_labels=3).compute(torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2).long())


def test_logits_are_decided_over_their_second_dimension():
    logits, references = torch.randn(3, 4, 6, 5), torch.randint(4, (3, 6, 5))
    metric = load_metric("mean_iou")
    assert metric.compute(logits, references) == metric.compute(logits.argmax(1), references)
    assert metric.statistics(logits, references).shape == (3, 12)
    assert load_metric("mean_iou", num_labels=6).statistics(logits.argmax(1), references).shape == (3, 18)
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        metric.statistics(torch.randn(3, 6, 5), references)
    with pytest.raises(ValueError, match=r"predictions \[3, 3, 5\] for references \[3, 6, 5\]"):
        metric.compute(torch.randn(3, 4, 3, 5), references)


def test_group_scores_equal_compute_on_the_same_subset():
    predictions, references = torch.randint(3, (10, 4, 4)), torch.randint(3, (10, 4, 4))
    references[::3, 0] = 255
    index = torch.randint(10, (6, 3))
    for name in THEIRS:
        metric = load_metric(name)
        expected = [metric.compute(predictions[rows], references[rows]) for rows in index]
        assert metric.score_groups(predictions, references, index).tolist() == pytest.approx(expected, abs=1e-12)
