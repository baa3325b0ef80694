"""Surrogates for semantic segmentation."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_reloss import AutoSurrogate, SurrogateForSegmentation, hand_made_loss, load_metric
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.learned.counts import CountNetwork

METRICS = ["mean_iou", "dice", "pixel_accuracy"]


def drawn(number: int = 3, classes: int = 4, seed: int = 0, size=(12, 10), logits_size=(6, 5)):
    """Logits that are mostly right, of maps with stripes of classes and some pixels that do not count."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (number, *size), generator=generator)
    small = F.one_hot(labels, classes).movedim(-1, 1).float()
    logits = F.interpolate(small, logits_size) * 2 + torch.randn(number, classes, *logits_size, generator=generator)
    labels[:, 0] = 255
    labels[:, :, 0] = -100
    return logits, labels


@pytest.mark.parametrize("name", METRICS)
def test_of_sure_predictions_the_soft_metric_is_the_metric(name):
    _, labels = drawn()
    decided = torch.where(torch.rand(labels.shape) < 0.7, labels.clamp(0, 3), torch.randint(4, labels.shape))
    loss = SurrogateForSegmentation.for_metric(name, scale_weight=1e-7)
    value = float(loss(40.0 * F.one_hot(decided, 4).movedim(-1, 1), labels).detach())
    metric = load_metric(name, num_labels=4)
    if name == "pixel_accuracy":  # of single pixels: it is bounded by nothing where they are wrong
        wrong = (1 - metric.compute(decided, labels)) * 40
        assert value == pytest.approx(wrong, rel=0.01)
        return
    parts, weights = metric.parts(metric.statistics(decided, labels).sum(0))
    assert value == pytest.approx(-float(((parts + 1e-4) / (1 + 1e-4)).log() @ weights / weights.sum()), abs=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_small_logits_are_brought_to_the_size_of_the_labels_as_segformer_does(name):
    logits, labels = drawn()
    loss = SurrogateForSegmentation.for_metric(name)
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    assert torch.equal(loss(logits, labels), loss(full, labels))
    columns = SurrogateForSegmentation.recorded({"logits": logits}, labels, {})
    assert float(loss(columns, columns["labels"])) == pytest.approx(float(loss(full, labels)), abs=1e-5)
    metric = load_metric(name)
    assert metric.compute(columns["decided"], columns["map"]) == pytest.approx(metric.compute(full, labels), abs=1e-9)
    groups = {key: column[None].expand(2, *column.shape) for key, column in columns.items()}
    torch.testing.assert_close(loss(groups, groups["labels"]), loss(full, labels).expand(2))


def test_soft_counts_are_those_of_examples():
    network = SurrogateForSegmentation.for_metric("mean_iou").network
    usual = CountNetwork(scores={"mean_iou": {}}, trust_region=True, scale_weight=network.pull)
    with torch.no_grad():
        network.spline.log_slopes.normal_()
    usual.load_state_dict(network.state_dict())
    outputs, labels = torch.randn(2, 3, 7, 5), torch.randint(5, (2, 3, 7))
    evidence = Evidence(3 * outputs, labels, torch.rand(2, 3, 7) < 0.8)
    together = Evidence(*(tensor.flatten(1, 2) for tensor in evidence))
    torch.testing.assert_close(network(evidence), usual(together))
    norms, wanted = network.gradient_norms(evidence)
    assert norms.isfinite().all()
    assert norms.shape == wanted.shape == (1, 3, 7)


@pytest.mark.parametrize("name", METRICS)
def test_a_logit_further_on_the_right_side_never_costs_more(name):
    loss = SurrogateForSegmentation.for_metric(name, scale_weight=1e-9)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    logits, labels = drawn(logits_size=(12, 10))
    logits.requires_grad_()
    loss(logits, labels).backward()
    right = F.one_hot(labels.clamp(0, 3), 4).movedim(-1, 1).bool()
    assert (logits.grad[right] <= 1e-7).all()
    ignored = (labels < 0) | (labels == 255)
    assert (logits.grad.movedim(1, -1)[ignored] == 0).all()


def test_of_large_images_a_sample_of_pixels_is_recorded():
    labels = torch.randint(20, (2, 200, 300), dtype=torch.uint8)
    labels[0, :50] = 255
    logits = torch.randn(2, 20, 50, 75)
    columns = SurrogateForSegmentation.recorded({"logits": logits}, labels.long(), {})
    assert columns["pixel_logits"].shape == (2, 25, 20)
    assert columns["decided"].shape == columns["map"].shape == (2, 4096)
    assert sum(column.nbytes for column in columns.values()) / 2 < 19_000
    share = float((columns["map"][0] == -100).float().mean())
    assert share == pytest.approx(0.25, abs=1e-3)
    full = F.interpolate(logits, size=(200, 300), mode="bilinear", align_corners=False)
    whole, sample = (load_metric("pixel_accuracy").compute(*each) for each in (
        (full, labels), (columns["decided"], columns["map"])
    ))  # fmt: skip
    assert sample == pytest.approx(whole, abs=0.02)
    again = SurrogateForSegmentation.recorded({"logits": logits}, labels.long(), {})
    assert all(torch.equal(columns[name], again[name]) for name in columns)


def test_bad_input_is_said_what_it_is():
    loss = SurrogateForSegmentation.for_metric("mean_iou")
    logits, labels = drawn()
    with pytest.raises(ValueError, match=r"0 to 3 .* but 1 pixels are not, such as 9.*semantic_loss_ignore_index"):
        loss(logits, labels.masked_fill(torch.arange(360).view(3, 12, 10) == 99, 9))
    with pytest.raises(ValueError, match=r"labels \[N, H, W\], but got \[3, 4, 6, 5\] and \[3, 12\]"):
        loss(logits, labels[:, :, 0])
    with pytest.raises(ValueError, match="of two classes or more"):
        loss(logits[:, :1], labels)
    with pytest.raises(ValueError, match="the model has diverged"):
        loss(logits * torch.nan, labels)
    with pytest.raises(ValueError, match="integer labels"):
        loss(logits, labels.float())
    nothing = torch.full_like(labels, 255)
    for name in (*METRICS, "accuracy"):
        assert float(SurrogateForSegmentation.for_metric(name)(logits, nothing)) == 0
    many = torch.randn(1, 300, 2, 2)
    assert float(loss(many, torch.full((1, 2, 2), 255))) > 0  # where it is a class


def test_hand_made_losses_of_pixels():
    logits, labels = drawn(logits_size=(12, 10))
    counts = (labels >= 0) & (labels < 255)
    flat, true = logits.movedim(1, -1)[counts], labels[counts]
    usual = F.cross_entropy(flat, true)
    right = flat.softmax(-1).gather(-1, true[:, None])
    made = {name: hand_made_loss(name, task="segmentation") for name in ("cross_entropy", "focal", "lovasz", "dice")}
    torch.testing.assert_close(made["cross_entropy"](logits, labels), usual)
    torch.testing.assert_close(made["focal"](logits, labels), -((1 - right) ** 2 * right.log()).mean())
    torch.testing.assert_close(made["lovasz"](logits, labels), (hand_made_loss("lovasz")(flat, true) + usual) / 2)
    torch.testing.assert_close(made["dice"](logits, labels), (hand_made_loss("soft_f1")(flat, true) + usual) / 2)
    sure = 40.0 * F.one_hot(labels.clamp(0, 3), 4).movedim(-1, 1)
    assert all(float(loss(sure, labels)) == pytest.approx(0, abs=1e-4) for loss in made.values())
    assert math.isfinite(float(made["lovasz"](logits, torch.full_like(labels, 255))))


def test_it_is_found_and_saved(tmp_path):
    logits, labels = drawn()
    assert AutoSurrogate.reading({"logits": logits}, labels) is SurrogateForSegmentation
    assert AutoSurrogate.reading((logits,), labels) is SurrogateForSegmentation
    of_key = SurrogateForSegmentation.for_metric(load_metric(lambda p, r: 0.0, name="mean_iou"))
    assert of_key.config.scores == {"mean_iou": {}}
    of_key.save_pretrained(tmp_path)
    assert torch.equal(AutoSurrogate.from_pretrained(tmp_path)(logits, labels), of_key(logits, labels))
