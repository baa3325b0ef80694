import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hf_reloss.metrics import load_metric
from hf_reloss.metrics.keypoints import COCO_SIGMAS

# Few values, so that joints coincide, distances are just at the limit, boxes have no extent.
coordinates = st.sampled_from([0.0, 1.0, 3.0, 4.0, 5.0, -20.0, 100.25, 1e6, float("nan"), float("inf")]) | st.floats(
    -500, 500
)
sizes = st.tuples(st.integers(1, 5), st.integers(2, 4))


@st.composite
def poses(draw):
    """Predictions [N, J, 2], references [N, J, 3] with visibility, areas [N]."""
    n, joints = draw(sizes)
    predictions = draw(hnp.arrays(np.float64, (n, joints, 2), elements=coordinates))
    true = draw(hnp.arrays(np.float64, (n, joints, 2), elements=coordinates))
    right = draw(hnp.arrays(bool, (n, joints)))
    visibility = draw(hnp.arrays(np.float64, (n, joints, 1), elements=st.sampled_from([0.0, 1.0, 2.0])))
    areas = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0, 50.5, 1e4])))
    return np.where(right[..., None], true, predictions), np.concatenate([true, visibility], -1), areas


def distance(a, b):
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)


def pck_by_loops(predictions, references, alpha, length):
    hits = count = 0
    for predicted, true in zip(predictions, references, strict=True):
        labelled = [
            j for j in range(len(true)) if np.isfinite(true[j, :2]).all() and (true.shape[1] < 3 or true[j, 2] > 0)
        ]
        if length == "extent":
            sides = [max(true[labelled, i]) - min(true[labelled, i]) for i in (0, 1)] if labelled else [0.0]
            scale = max(sides)
        elif isinstance(length, tuple):
            scale = distance(true[length[0]], true[length[1]]) if set(length) <= set(labelled) else 0.0
        else:
            scale = length
        if scale > 0:
            hits += sum(distance(predicted[j], true[j]) <= alpha * scale for j in labelled)
            count += len(labelled)
    return hits / count if count else math.nan


def oks_by_loops(predictions, references, areas, sigmas):
    similarities = []
    for predicted, true, area in zip(predictions, references, areas, strict=True):
        labelled = [j for j in range(len(true)) if true[j, 2] > 0 and np.isfinite(true[j, :2]).all()]
        errors = [
            distance(predicted[j], true[j]) ** 2 / (2 * sigmas[j]) ** 2 / (area + np.spacing(1)) / 2 for j in labelled
        ]
        if labelled:
            similarities.append(sum(0.0 if math.isnan(e) else math.exp(-e) for e in errors) / len(labelled))
    return sum(similarities) / len(similarities) if similarities else math.nan


@settings(deadline=None)
@given(
    poses(), st.sampled_from([0.05, 0.2, 0.5, 1.0]), st.sampled_from(["extent", (0, 1), (1, 0), 5, 12.5]), st.booleans()
)
def test_pck_equals_loops(pose, alpha, length, with_visibility):
    predictions, references, _ = pose
    references = references if with_visibility else references[..., :2]
    ours = load_metric("pck", alpha=alpha, length=length).compute(predictions, references)
    assert ours == pytest.approx(pck_by_loops(predictions, references, alpha, length), abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(poses(), st.data())
def test_oks_equals_loops(pose, data):
    predictions, references, areas = pose
    joints = references.shape[1]
    sigmas = data.draw(st.lists(st.sampled_from([0.025, 0.1, 1.0, 30.0]), min_size=joints, max_size=joints))
    ours = load_metric("oks", sigmas=sigmas).compute(predictions, {"keypoints": references, "area": areas})
    assert ours == pytest.approx(oks_by_loops(predictions, references, areas, sigmas), abs=1e-9, nan_ok=True)


def random_poses(n=40, joints=17, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 100, (n, joints, 2))
    predictions = true + rng.normal(0, rng.uniform(0, 12, (n, 1, 1)), true.shape)
    references = np.concatenate([true, rng.integers(0, 3, (n, joints, 1))], -1)
    references[:3, :, 2] = 0
    references[3:6, :, 0] = np.nan
    return predictions, references, rng.uniform(500, 5000, n)


def test_oks_knows_the_sigmas_of_coco():
    predictions, references, areas = random_poses()
    ours = load_metric("oks").compute(predictions, {"keypoints": references, "area": areas})
    sigmas = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
    assert ours == pytest.approx(oks_by_loops(predictions, references, areas, sigmas), abs=1e-9)
    assert 0.1 < ours < 0.9
    assert tuple(sigmas) == COCO_SIGMAS


def test_the_limit_itself_is_a_hit():
    metric = load_metric("pck", alpha=0.5, length=10)
    assert metric.compute([[[3.0, 4.0], [3.0, 4.0001]]], [[[0.0, 0.0], [0.0, 0.0]]]) == 0.5


def test_what_is_not_labelled_does_not_widen_the_extent():
    true = [[[0.0, 0.0, 1], [10.0, 0.0, 1], [1000.0, 0.0, 0], [0.0, math.nan, 1]]]
    metric = load_metric("pck", alpha=0.2)
    assert metric.statistics([[[2.0, 0.0], [12.1, 0.0], [1000.0, 0.0], [0.0, 0.0]]], true).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("length", ["extent", 5.0, (0, 1)])
def test_examples_without_length_or_labels_count_nothing(length):
    same = [[3.0, 3.0, 1]] * 3  # no extent, and joints 0 and 1 coincide
    hidden = [[0.0, 0.0, 0], [5.0, 5.0, 0], [9.0, 9.0, 0]]
    statistics = load_metric("pck", length=length).statistics(np.zeros((2, 3, 2)), [same, hidden])
    assert statistics.tolist() == [[0.0, 3.0 if length == 5.0 else 0.0], [0.0, 0.0]]


def test_a_nan_prediction_is_as_wrong_as_can_be():
    true = np.array([[[0.0, 0.0, 2.0], [8.0, 8.0, 2.0]]])
    predictions = np.array([[[0.0, 0.0], [math.nan, 8.0]]])
    assert load_metric("pck").compute(predictions, true) == 0.5
    assert load_metric("oks", sigmas=[1, 1]).compute(predictions, {"keypoints": true, "area": [9.0]}) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_precision_is_computed_in_double(dtype):
    predictions, references, areas = (torch.from_numpy(values) for values in random_poses())
    predictions = (1000 + 4 * predictions).to(dtype)  # whose squares are beyond half precision
    references = torch.cat([1000 + 4 * references[..., :2].nan_to_num(), references[..., 2:]], -1).to(dtype)
    pck, oks = load_metric("pck", alpha=0.1), load_metric("oks")
    assert pck.compute(predictions, references) == pck.compute(predictions.double(), references.double())
    ours = oks.compute(predictions, {"keypoints": references, "area": 16 * areas})
    assert ours == oks.compute(predictions.double(), {"keypoints": references.double(), "area": 16 * areas})
    assert 0 < ours < 1


def test_packed_references_are_what_read_gives():
    predictions, references, areas = random_poses()
    metric = load_metric("oks")
    mapping = {"keypoints": references.tolist(), "area": areas.tolist()}
    _, packed = metric.read(predictions, mapping)
    assert packed.shape == (40, 17, 4)
    assert metric.compute(predictions, packed) == metric.compute(predictions, mapping)


@pytest.mark.parametrize("name", ["pck", "oks"])
def test_group_scores_equal_compute_on_the_same_subset(name):
    predictions, references, areas = random_poses()
    index = torch.randint(40, (25, 8))
    metric = load_metric(name)

    def subset(rows):
        return references[rows] if name == "pck" else {"keypoints": references[rows], "area": areas[rows]}

    scores = metric.score_groups(predictions, subset(np.arange(40)), index)
    expected = [metric.compute(predictions[rows], subset(rows)) for rows in index.numpy()]
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 20


@pytest.mark.parametrize("name", ["pck", "oks"])
def test_a_sum_of_nothing_has_no_score(name):
    scores = load_metric(name).score([[[0.0, 0.0], [1.0, 4.0]]])
    assert scores.shape == (1, 2)
    assert math.isnan(scores[0, 0])
    assert scores[0, 1] == 0.25


@pytest.mark.parametrize(
    ("predictions", "references"),
    [((3, 4, 3), (3, 4, 3)), ((3, 8), (3, 4, 2)), ((3, 4, 2), (3, 5, 2)), ((3, 4, 2), (3, 4, 4)), ((3, 4, 2), (3, 4))],
)
def test_pck_refuses_other_shapes(predictions, references):
    with pytest.raises(ValueError, match=r"\[N, J, 2\] and references \[N, J, 2\] or \[N, J, 3\], but got"):
        load_metric("pck").compute(np.zeros(predictions), np.zeros(references))


@pytest.mark.parametrize("name", ["pck", "oks"])
def test_other_lengths_are_refused(name):
    with pytest.raises(ValueError, match="3 predictions and 2 references"):
        load_metric(name).compute(np.zeros((3, 17, 2)), np.zeros((2, 17, 4)))


def test_oks_refuses_references_without_area():
    predictions, references, areas = random_poses()
    with pytest.raises(
        ValueError, match=r"'area': \[N\]}, or packed \[N, J, 4\], but got \[40, 17, 2\] and \[40, 17, 3\]"
    ):
        load_metric("oks").compute(predictions, references)
    with pytest.raises(ValueError, match=r"but got \['keypoints'\]"):
        load_metric("oks").compute(predictions, {"keypoints": references})
    with pytest.raises(ValueError, match=r"area \[N\], but got \[40, 17, 3\] and \[39\]"):
        load_metric("oks").compute(predictions, {"keypoints": references, "area": areas[1:]})
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"areas in square pixels, 0 or more, but got {wrong}"):
            load_metric("oks").compute(predictions, {"keypoints": references, "area": [wrong, *areas[1:]]})


def test_oks_refuses_joints_without_sigma():
    with pytest.raises(ValueError, match="5 joints and 17 sigmas, those of COCO"):
        load_metric("oks").compute(np.zeros((2, 5, 2)), np.ones((2, 5, 4)))
    with pytest.raises(ValueError, match="17 joints and 2 sigmas"):
        load_metric("oks", sigmas=[0.1, 0.1]).compute(np.zeros((2, 17, 2)), np.ones((2, 17, 4)))


@pytest.mark.parametrize("sigmas", [[], [0.1, 0.0], [0.1, -1.0]])
def test_sigmas_are_above_zero(sigmas):
    with pytest.raises(ValueError, match="sigmas are numbers above 0"):
        load_metric("oks", sigmas=sigmas)


@pytest.mark.parametrize("length", [0, -3.0, "head", (1,), (2, 2), (0, -1), (0, 1, 2), None])
def test_pck_refuses_other_reference_lengths(length):
    with pytest.raises(
        ValueError, match="length is 'extent', a number of pixels above 0, or the indices of two joints"
    ):
        load_metric("pck", length=length)


def test_pck_refuses_joints_that_are_not_there():
    with pytest.raises(ValueError, match=r"from joint to joint \(0, 7\), but there are 4"):
        load_metric("pck", length=(0, 7)).compute(np.zeros((3, 4, 2)), np.zeros((3, 4, 2)))


def test_alpha_is_above_zero():
    with pytest.raises(ValueError, match="above 0, but got 0"):
        load_metric("pck", alpha=0)
