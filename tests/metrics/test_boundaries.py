"""Boundary IoU is that of masks that are eroded pixel by pixel."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.ndimage import binary_erosion

from hf_reloss import load_metric


def edges(mask, distance):
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def counts(predictions, references, classes, ratio):
    """Of each image and class, the pixels near both edges, and near either."""
    found = np.zeros((classes, 2))
    for predicted, true in zip(predictions, references, strict=True):
        distance = max(1, round(ratio * math.hypot(*true.shape)))
        for kind in range(classes):
            ours, theirs = (edges(x == kind, distance) & (true < 200) for x in (predicted, true))
            found[kind] += (ours & theirs).sum(), (ours | theirs).sum()
    return found


def by_erosion(*args):
    found = counts(*args)
    present = found[:, 1] > 0
    return float(np.mean(found[present, 0] / found[present, 1])) if present.any() else math.nan


def drawn(seed, shape, classes):
    """Maps with large areas, of which some pixels do not count."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, classes, (2, *shape[:-2], -(-shape[-2] // 3), -(-shape[-1] // 3)))
    fine = coarse.repeat(3, -2).repeat(3, -1)[..., : shape[-2], : shape[-1]]
    noise = generator.random(fine.shape) < 0.05
    predictions, references = np.where(noise, generator.integers(0, classes, fine.shape), fine)
    return predictions, np.where(generator.random(shape) < 0.1, 255, references)


@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(1, 14), st.sampled_from([0.01, 0.1, 0.2, 0.9]))
@settings(max_examples=30, deadline=None)
def test_it_is_that_of_eroded_masks(seed, height, width, ratio):
    predictions, references = drawn(seed, (3, height, width), 4)
    metric = load_metric("boundary_iou", dilation_ratio=ratio)
    wanted = by_erosion(predictions, references, 4, ratio)
    assert metric.compute(predictions, references) == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    hidden = np.where(references == 255, -100, references)
    assert metric.compute(predictions, hidden) == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_logits_groups_and_images_of_different_sizes():
    predictions, references = map(torch.tensor, drawn(0, (6, 12, 15), 3))
    metric = load_metric("boundary_iou")
    logits = torch.nn.functional.one_hot(predictions, 3).movedim(-1, 1).float()
    index = torch.randint(6, (5, 4))
    expected = [by_erosion(predictions[rows].numpy(), references[rows].numpy(), 3, 0.02) for rows in index]
    assert metric.score_groups(logits, references, index).tolist() == pytest.approx(expected)
    several = [drawn(seed, shape, 3) for seed, shape in enumerate([(9, 30), (14, 8), (20, 20)])]
    ours, theirs = ([torch.tensor(image[side]) for image in several] for side in (0, 1))
    wanted = by_erosion([image[0] for image in several], [image[1] for image in several], 3, 0.02)
    assert metric.compute(ours, theirs) == pytest.approx(wanted)


def test_the_inside_of_an_area_does_not_count():
    references = torch.zeros(1, 40, 40, dtype=torch.long)
    references[:, 8:32, 8:32] = 1
    hole = references.clone()
    hole[:, 19:21, 19:21] = 0
    shifted = references.roll(1, 1)
    metric, iou = load_metric("boundary_iou"), load_metric("mean_iou")
    assert metric.compute(shifted, references) < 0.7 < 0.9 < iou.compute(shifted, references)
    assert metric.compute(references, references) == 1
    assert metric.higher_is_better


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r"whole maps \[N, H, W\], .* but got references \[2, 9\]"):
        load_metric("boundary_iou").compute(torch.zeros(2, 9).long(), torch.zeros(2, 9).long())
    with pytest.raises(ValueError, match="0 to 1, but got 2"):
        load_metric("boundary_iou", dilation_ratio=2)
    with pytest.raises(ValueError, match="class indices are 0 or more"):
        load_metric("boundary_iou").compute(torch.full((1, 3, 3), -1), torch.zeros(1, 3, 3).long())
