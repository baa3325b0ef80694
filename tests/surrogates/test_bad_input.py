"""What each task's surrogate makes of labels in which there is nothing, one class or no number, and of other kinds."""

import pytest
import torch

from hf_reloss import AutoSurrogate, load_metric

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def classes(number: int, *shape: int) -> torch.Tensor:
    return torch.randint(number, shape, generator=GENERATOR)


TASKS = {
    "classification": ({"logits": noise(6, 3)}, classes(3, 6)),
    "multilabel": ({"logits": noise(6, 4)}, classes(2, 6, 4).float()),
    "regression": ({"logits": noise(6, 1)}, noise(6)),
    "embeddings": ({"embeddings": noise(6, 4)}, classes(2, 6)),
    "tokens": ({"logits": noise(3, 6, 5)}, classes(5, 3, 6)),
    "spans": ({"start_logits": noise(4, 7), "end_logits": noise(4, 7)}, torch.tensor([[1, 2], [0, 0], [3, 5], [2, 2]])),
    "segmentation": ({"logits": noise(2, 3, 4, 4)}, classes(3, 2, 4, 4)),
    "keypoints": ({"heatmaps": noise(2, 3, 8, 8)}, 7 * torch.rand(2, 3, 3, generator=GENERATOR)),
}
METRICS = {
    "classification": [load_metric("accuracy"), load_metric("f1", average="macro")],
    "multilabel": [
        *(load_metric("f1", average=average) for average in ("macro", "samples")),
        load_metric("subset_accuracy"),
        load_metric("ndcg"),
    ],
    "regression": [load_metric("mse"), load_metric("pearsonr"), load_metric("spearmanr")],
    "embeddings": [load_metric("recall_at_k")],
    "tokens": [load_metric("accuracy"), load_metric("sacrebleu"), load_metric("rouge1")],
    "spans": [load_metric("squad_f1"), load_metric("squad_exact_match")],
    "segmentation": [load_metric("mean_iou"), load_metric("pixel_accuracy")],
    "keypoints": [load_metric("pck")],
}
EACH = [pytest.param(task, metric, id=f"{task}-{metric.name}") for task in TASKS for metric in METRICS[task]]


def of_metric(task: str, metric):
    return AutoSurrogate.of_task(task).for_metric(metric)


def value_and_slopes(task: str, metric, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    outputs = {name: x[: len(labels)].clone().requires_grad_() for name, x in TASKS[task][0].items()}
    loss = of_metric(task, metric)(outputs, labels)
    slopes = torch.autograd.grad(loss, list(outputs.values()))
    return float(loss.detach()), torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize(("task", "metric"), EACH)
def test_labels_in_which_nothing_counts_cost_nothing(task, metric):
    labels = TASKS[task][1]
    for nothing in (torch.full_like(labels, -100), labels[:0]):
        value, slopes = value_and_slopes(task, metric, nothing)
        assert value == 0
        assert (slopes == 0).all()


@pytest.mark.parametrize(("task", "metric"), EACH)
def test_labels_that_are_all_the_same_have_a_finite_loss(task, metric):
    for number in (0, 1):  # such as no positive one of several labels, or nothing but these
        value, slopes = value_and_slopes(task, metric, torch.full_like(TASKS[task][1], number))
        assert value >= 0
        assert slopes.isfinite().all()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("classification", "wants integer labels, class indices, but these are torch.float32"),
        ("multilabel", "0 or 1 each, or -100 to be ignored, but there is nan"),
        ("regression", "1 of 6 labels are not finite: leave such examples out"),
        ("embeddings", "wants class indices from 0 on"),
        ("tokens", "integer labels"),
        ("spans", "integer labels|token positions"),
        ("segmentation", "integer labels"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(task, message):
    labels = TASKS[task][1].float().clone()
    labels.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=message):
        of_metric(task, METRICS[task][0])(TASKS[task][0], labels)


@pytest.mark.parametrize("task", TASKS)
def test_other_kinds_of_labels_and_models_without_logits_are_refused(task):
    loss, (outputs, labels) = of_metric(task, METRICS[task][0]), TASKS[task]
    with pytest.raises(ValueError, match=r"as a tensor, but got a list of dict: .*torch.tensor\(labels\).*no surr"):
        loss(outputs, [{"boxes": row} for row in labels])
    with pytest.raises(ValueError, match=r"list of (int|float|list)"):
        loss(outputs, labels.tolist())
    with pytest.raises(ValueError, match=r"reads the model's '\w+', but its outputs are \['loss'\]"):
        loss({"loss": torch.tensor(1.0)}, labels)
    with pytest.raises(ValueError, match="None"):
        loss(outputs, None)
