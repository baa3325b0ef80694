import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from safetensors.torch import save_file
from typer.testing import CliRunner

from hf_reloss import AutoSurrogate, SurrogateConfig, load_metric
from hf_reloss.cli import app
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.heatmaps import decode_heatmaps, gaussian_targets
from hf_reloss.surrogates.convert import convert_checkpoint
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints

METRICS = {
    "pck": {"alpha": 0.1},
    "oks": {"sigmas": [0.05, 0.1, 0.02]},
}
metrics = pytest.mark.parametrize("metric", METRICS)


def fresh(metric: str = "pck", **config) -> SurrogateForKeypoints:
    options = config.pop("options", METRICS.get(metric))
    return SurrogateForKeypoints(SurrogateConfig(task="keypoints", scores={metric: options}, **config))


def with_random_weights(seed: int, metric: str = "pck", **config) -> SurrogateForKeypoints:
    surrogate = fresh(metric, **config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=generator)
    return surrogate.freeze()


def bodies(seed: int, n: int = 5, metric: str = "pck", size: int = 12) -> torch.Tensor:
    """Labels [n, 3, 3 or 4] of joints, all of them labelled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.rand(n, 3, 2, generator=generator) * (size - 1), torch.ones(n, 3, 1)], dim=-1)
    return labels if metric == "pck" else torch.cat([labels, torch.full((n, 3, 1), 40.0)], dim=-1)


def noise(seed: int, n: int = 5, size: int = 12) -> torch.Tensor:
    return 0.3 * torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def lit(pixels: list[tuple[int, int]], size: int = 12, height: float = 9.0) -> torch.Tensor:
    """Heatmaps [1, K, size, size] that are 0 but for one pixel each, at x and y."""
    heatmaps = torch.zeros(1, len(pixels), size, size)
    for joint, (x, y) in enumerate(pixels):
        heatmaps[0, joint, y, x] = height
    return heatmaps


# Values


def test_the_divergence_of_hits_by_hand():
    # Joints (2, 2) and (2, 10): the extent is 8 and half of it the radius, 4 pixels.
    surrogate = fresh(options={"alpha": 0.5}, anchor=0.0)
    labels = torch.tensor([[[2.0, 2.0, 1.0], [2.0, 10.0, 1.0]]])
    heatmaps = 0.2 * noise(3, n=1)[:, :2]
    losses = surrogate({"heatmaps": heatmaps}, labels, reduction="none")[0]
    for joint, (x, y) in enumerate([(2, 2), (2, 10)]):
        credits, weights = [], []
        for row in range(12):
            for column in range(12):
                distance = torch.tensor(math.dist((column, row), (x, y)) / 4)
                credits.append(surrogate.network.credit(distance).item())
                weights.append(math.exp(10 * heatmaps[0, joint, row, column].item()))
        shares = zip(credits, weights, strict=True)
        pairs = [(credit / sum(credits), weight / sum(weights)) for credit, weight in shares]
        expected = sum(due * math.log(due / probability) for due, probability in pairs)
        assert losses[joint].item() == pytest.approx(expected, rel=1e-4)


def test_credit_of_distances_by_hand():
    # In radii; the smooth step is 1 / (1 + exp(8 (d - 0.75))), made 1 at 0, and straight between 24 knots.
    distances = torch.tensor([0.0, 0.5, 0.75, 1.0, 2.0, 3.0, 9.0])
    step = 1 / (1 + (8 * (distances.clamp(max=3) - 0.75)).exp()) * (1 + math.exp(-6))
    torch.testing.assert_close(fresh().network.credit(distances), step, rtol=1e-3, atol=1e-6)
    # Similarity is exp(-d² / (2 area (2 sigma)²)): of area 100 and sigma 0.1, a radius is two pixels.
    surrogate, labels = fresh("oks", options={"sigmas": [0.1]}), torch.tensor([[[4.0, 4.0, 2.0, 100.0]]])
    assert surrogate.network.radii(labels, torch.ones(1, 1, dtype=torch.bool)).item() == pytest.approx(2)
    for pixels in (1.0, 2.0, 4.0):
        similarity = load_metric("oks", sigmas=[0.1]).compute(torch.tensor([[[4.0 + pixels, 4.0]]]), labels)
        credit = surrogate.network.credit(torch.tensor(pixels / 2)).item()
        assert credit == pytest.approx(similarity, rel=1e-3)


@metrics
def test_what_costs_least_in_expectation_is_the_expected_credit(metric):
    # Of three places the joint is at one, with probabilities of a half, 0.3 and 0.2; the last two are near each other,
    # so that the best decision lies between them.
    places, chances = torch.tensor([[2.0, 9.0], [9.0, 3.0], [9.0, 5.0]]), torch.tensor([0.4, 0.3, 0.3])
    options = {"alpha": 1.0, "length": 3.0} if metric == "pck" else {"sigmas": [0.1]}
    surrogate = fresh(metric, options=options, anchor=0.0).freeze()
    rest = torch.ones(3, 1) if metric == "pck" else torch.tensor([[1.0, 80.0]]).expand(3, 2)
    labels = torch.cat([places, rest], dim=-1)[:, None]
    heatmap = torch.zeros(1, 1, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([heatmap], lr=0.02)
    for _ in range(1500):
        losses = surrogate(heatmap.expand(3, -1, -1, -1), labels, reduction="none")[:, 0]
        optimizer.zero_grad()
        (chances * losses).sum().backward()
        optimizer.step()
    highest = decode_heatmaps(heatmap.detach(), shift=None)[0, 0]
    score = load_metric(metric, **options)
    expected = {}
    for x in range(12):
        for y in range(12):
            decision = torch.tensor([[[float(x), float(y)]]])
            expected[x, y] = sum(
                chance * score.compute(decision, label[None]) for chance, label in zip(chances, labels, strict=True)
            )
    assert expected[tuple(highest.int().tolist())] == pytest.approx(max(expected.values()))
    assert highest.tolist() != [2, 9]  # which is the likeliest place


def test_heatmaps_learned_with_squared_error_are_read_well():
    # The probability of a joint at 64×48, of a Gaussian with a peak of 1: nearly all lies near the peak.
    labels = torch.tensor([[[20.0, 30.0, 1.0], [20.0, 50.0, 1.0]]])
    right = gaussian_targets(labels[..., :2], 64, 48)
    surrogate = fresh(options={"alpha": 0.2}, anchor=0.0)
    assert surrogate({"heatmaps": right}, labels) < 2
    assert surrogate({"heatmaps": right.flip(-1)}, labels) > 4


@metrics
def test_the_anchor_is_half_the_squared_error(metric):
    labels, heatmaps = bodies(0, metric=metric), noise(0)
    without, anchored = (fresh(metric, anchor=anchor)(heatmaps, labels, reduction="none") for anchor in (0.0, 0.3))
    errors = (heatmaps - gaussian_targets(labels[..., :2], 12, 12)).square().sum((-2, -1))
    torch.testing.assert_close(anchored - without, 0.15 * errors)


def test_original_loss_is_the_mean_squared_error():
    labels, heatmaps = bodies(0), noise(0)
    surrogate = fresh(sigma=1.5)
    evidence = surrogate.evidence(heatmaps, labels)
    expected = F.mse_loss(heatmaps, gaussian_targets(labels[..., :2], 12, 12, 1.5))
    torch.testing.assert_close(surrogate.original_losses(evidence).mean(), expected)


@pytest.mark.parametrize("length", ["extent", 7.0, (0, 2)])
def test_one_radius_is_the_distance_up_to_which_the_metric_calls_a_joint_right(length):
    labels = bodies(3, n=20)
    metric = load_metric("pck", alpha=0.3, length=length)
    surrogate = SurrogateForKeypoints.for_metric(metric)
    radii = surrogate.network.radii(labels, torch.ones(20, 3, dtype=torch.bool))
    for scale, score in ((0.999, 1.0), (1.001, 0.0)):
        moved = labels[..., :2] + torch.tensor([0.6, 0.8]) * scale * radii[..., None]
        assert metric.compute(moved, labels) == score


# Monotone by construction


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(METRICS)), st.sampled_from([0.0, 0.5]))
def test_what_moves_nearer_to_the_joint_never_costs_more_whatever_was_learned(seed, metric, anchor):
    surrogate = with_random_weights(seed, metric, anchor=anchor).double()
    labels = bodies(seed, n=1, metric=metric).double()
    heatmaps = noise(seed, n=1).double()
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    distances = (columns - labels[..., 0, None, None]).square() + (rows - labels[..., 1, None, None]).square()
    order = distances.flatten(-2).argsort(-1)
    generator = torch.Generator().manual_seed(seed)
    before = surrogate(Evidence(heatmaps, labels, torch.ones(1, 3, dtype=torch.bool)), reduction="none")
    for _ in range(10):
        near, far = torch.randint(144, (2,), generator=generator).sort().values.tolist()
        flat = heatmaps.flatten(-2).clone()
        at_near, at_far = flat.gather(-1, order[..., [near]]), flat.gather(-1, order[..., [far]])
        flat.scatter_(-1, order[..., [near]], torch.maximum(at_near, at_far))
        if near != far:
            flat.scatter_(-1, order[..., [far]], torch.minimum(at_near, at_far))
        moved = Evidence(flat.view_as(heatmaps), labels, torch.ones(1, 3, dtype=torch.bool))
        assert (surrogate(moved, reduction="none") <= before + 1e-9).all()


@metrics
def test_credit_falls_from_one_whatever_was_learned(metric):
    for seed in range(5):
        credit = with_random_weights(seed, metric).network.credit(torch.linspace(0, 5, 200))
        assert credit[0] == 1
        assert (credit.diff() <= 0).all()
        assert (credit >= 0).all()


@metrics
def test_where_everything_is_wrong_there_is_a_gradient_towards_the_joint(metric):
    labels = bodies(0, n=1, metric=metric)
    heatmaps = torch.zeros(1, 3, 12, 12, requires_grad=True)
    fresh(metric, anchor=0.0)({"heatmaps": heatmaps}, labels).backward()
    x, y = labels[0, 0, :2].round().long()
    assert heatmaps.grad[0, 0, y, x] == heatmaps.grad[0, 0].min()
    assert heatmaps.grad[0, 0, y, x] < -0.1


# What does not count, and what cannot be


@metrics
def test_joints_that_are_not_labelled_do_not_count(metric):
    surrogate = with_random_weights(0, metric)
    labels, heatmaps = bodies(1, metric=metric), noise(1).requires_grad_()
    labels[0, 0, 2], labels[1, 1, 0], labels[2, 2, 1] = 0.0, torch.nan, torch.inf
    losses = surrogate(heatmaps, labels, reduction="none")
    counts = torch.ones(5, 3, dtype=torch.bool)
    counts[[0, 1, 2], [0, 1, 2]] = False
    assert (losses[~counts] == 0).all()
    loss = surrogate(heatmaps, labels)
    torch.testing.assert_close(loss, losses[counts].mean())
    loss.backward()
    assert (heatmaps.grad[~counts] == 0).all()
    assert (heatmaps.grad[counts].flatten(1) != 0).any(1).all()


@pytest.mark.parametrize("architecture", ["hits", "paper"])
def test_a_batch_without_labelled_joints_costs_nothing(architecture):
    heatmaps = torch.randn(2, 3, 12, 12, requires_grad=True)
    surrogate = fresh(architecture=architecture, num_pixels=144)
    loss = surrogate(heatmaps, torch.full((2, 3, 3), torch.nan))
    loss.backward()
    assert loss == 0
    assert (heatmaps.grad == 0).all()


@metrics
def test_a_body_without_labelled_joints_changes_nothing(metric):
    surrogate = with_random_weights(2, metric)
    labels, heatmaps = bodies(2, metric=metric), noise(2)
    labels[3, :, 2] = 0
    rest = [0, 1, 2, 4]
    torch.testing.assert_close(surrogate(heatmaps, labels), surrogate(heatmaps[rest], labels[rest]))


def test_one_labelled_joint_has_no_extent_and_a_finite_loss():
    labels = torch.tensor([[[3.0, 3.0, 1.0], [5.0, 5.0, 0.0]]])
    heatmaps = [lit([place, (0, 0)], height=1.0).requires_grad_() for place in ((3, 3), (3, 6))]
    right, wrong = (fresh(anchor=0.0)(heatmap, labels) for heatmap in heatmaps)
    (right + wrong).backward()
    assert right < 0.5 < wrong
    assert all(heatmap.grad.isfinite().all() for heatmap in heatmaps)


@metrics
@pytest.mark.parametrize("far", [-3.0, 14.0, 1e6])
def test_joints_outside_the_image_have_finite_losses(metric, far):
    labels, heatmaps = bodies(4, metric=metric), noise(4).requires_grad_()
    labels[:, 0, 0] = far
    loss = with_random_weights(1, metric)(heatmaps, labels)
    loss.backward()
    assert loss.isfinite()
    assert heatmaps.grad.isfinite().all()


def test_a_joint_just_outside_draws_the_heatmap_to_the_border():
    labels = torch.tensor([[[-0.8, 5.0, 1.0], [11.0, 5.0, 1.0]]])
    surrogate = fresh(anchor=0.0)
    losses = [surrogate(lit([(x, 5), (11, 5)]), labels).item() for x in (0, 1, 3)]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] - 0.5


@metrics
@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e15])
def test_extreme_heatmaps_have_finite_losses_and_gradients(metric, scale):
    heatmaps = (scale * noise(5)).requires_grad_()
    loss = with_random_weights(5, metric)(heatmaps, bodies(5, metric=metric))
    loss.backward()
    assert loss.isfinite()
    assert heatmaps.grad.isfinite().all()


@metrics
def test_a_batch_of_one(metric):
    surrogate = with_random_weights(6, metric)
    labels, heatmaps = bodies(6, metric=metric), noise(6)
    alone = torch.stack([surrogate(heatmaps[[row]], labels[[row]]) for row in range(5)])
    torch.testing.assert_close(alone.mean(), surrogate(heatmaps, labels))


# The authors' network


def test_the_authors_network_by_hand():
    torch.manual_seed(0)
    surrogate = fresh(architecture="paper", num_pixels=144)
    names = ["logits_fcs.0.weight", "logits_fcs.0.bias", "logits_fcs.2.weight", "logits_fcs.2.bias"]
    weights = surrogate.network.state_dict()
    assert list(weights) == names
    assert [list(weight.shape) for weight in weights.values()] == [[8, 144], [8], [1, 8], [1]]
    labels, heatmaps = bodies(0), noise(0)
    errors = (heatmaps - gaussian_targets(labels[..., :2], 12, 12)).square().flatten(2)
    hidden = errors @ weights[names[0]].T + weights[names[1]]
    hidden = hidden.where(hidden > 0, hidden.exp() - 1)
    attention = 1 / (1 + (-(hidden @ weights[names[2]].T + weights[names[3]])).exp())
    expected = (errors * attention).mean(-1)
    torch.testing.assert_close(surrogate(heatmaps, labels, reduction="none"), expected)
    torch.testing.assert_close(surrogate(heatmaps, labels), expected.mean())


def test_the_authors_network_is_made_for_one_size_of_heatmaps():
    with pytest.raises(ValueError, match="3072 pixels, but these have 12×12: set num_pixels=144"):
        fresh(architecture="paper")(noise(0), bodies(0))


@pytest.mark.parametrize("pixels", [(64, 48), (96, 72)])
@pytest.mark.parametrize("form", ["bin", "wrapped", "safetensors"])
def test_the_authors_checkpoints_are_converted(tmp_path, pixels, form):
    number = math.prod(pixels)
    source = fresh(architecture="paper", num_pixels=number)
    weights = {name: weight.clone() for name, weight in source.network.state_dict().items()}
    file = tmp_path / ("loss.safetensors" if form == "safetensors" else "loss.ckpt")
    if form == "safetensors":
        save_file(weights, file)
    else:
        torch.save({"state_dict": weights} if form == "wrapped" else weights, file)
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "keypoints" in result.output
    converted = AutoSurrogate.from_pretrained(tmp_path / "out")
    assert isinstance(converted, SurrogateForKeypoints)
    heatmaps = torch.randn(2, 3, *pixels)
    assert converted(heatmaps, bodies(0, n=2)) == source(heatmaps, bodies(0, n=2))


def test_a_checkpoint_that_lacks_weights_does_not_fit(tmp_path):
    torch.save({"logits_fcs.0.weight": torch.randn(8, 3072)}, tmp_path / "loss.ckpt")
    with pytest.raises(ValueError, match="do not fit the authors' network"):
        convert_checkpoint(tmp_path / "loss.ckpt")


# Recordings, and what learning asks for
