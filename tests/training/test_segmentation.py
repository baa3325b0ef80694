"""Semantic segmentation is trained by "auto", resumed, and judged by one's own function; boxes are refused."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForSegmentation, SurrogateTrainer, load_metric
from hf_reloss.training import wanted_metric

from .test_trainer import assert_same, weights


def images(number: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(3, (number, 4, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    pixels = 2.0 * F.one_hot(maps, 3).movedim(-1, 1) + 0.5 * torch.randn(number, 3, 16, 16, generator=generator)
    maps[:, 0] = 255
    return [{"pixel_values": image, "labels": labels} for image, labels in zip(pixels, maps, strict=True)]


def segformer() -> nn.Module:
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
            strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
        )
    )  # fmt: skip


class Plain(nn.Module):
    """One convolution; its own loss ignores labels of 255."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


def compute_metrics(evaluation):
    logits, labels = torch.from_numpy(evaluation.predictions), evaluation.label_ids
    if logits.dim() == 4:  # not decided before
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
    return {"mean_iou": load_metric("mean_iou", num_labels=3).compute(logits, labels)}


@pytest.fixture(autouse=True)
def few_groups(monkeypatch):
    """Surrogates are learned from fewer groups, in less time."""
    init = SurrogateTrainer.__init__

    def shortened(self, model, args, **options):
        args.num_groups, args.num_eval_groups, args.num_train_epochs = 64, 64, 1
        init(self, model, args, **options)

    monkeypatch.setattr(SurrogateTrainer, "__init__", shortened)


def make_trainer(folder, model, metric="mean_iou", **options):
    args = ReLossTrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=1e-2, report_to="none",
        save_strategy="steps", save_steps=20, disable_tqdm=True, seed=1, **options.pop("arguments", {}),
    )  # fmt: skip
    return ReLossTrainer(
        model, args, train_dataset=images(320, 0), eval_dataset=images(90, 1), metric=metric, **options
    )


def test_one_changed_line_trains_segformer_and_resumes(tmp_path):
    run = make_trainer(tmp_path / "whole", segformer(), arguments={"surrogate_warmup": 24})
    run.train()
    assert type(run.surrogate) is SurrogateForSegmentation or not run.loss_report.kept
    assert run.metric.ignore_index == 255
    assert run.loss_report.gain is not None
    for step in (20, 40):
        resumed = make_trainer(tmp_path / "resumed", segformer(), arguments={"surrogate_warmup": 24})
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same(weights(resumed), weights(run))


def test_the_best_checkpoint_is_the_one_that_is_kept(tmp_path):
    arguments = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 20, "max_steps": 40}
    arguments |= {"metric_for_best_model": "mean_iou", "greater_is_better": False}
    trainer = make_trainer(tmp_path, segformer(), compute_metrics=compute_metrics, arguments=arguments)
    trainer.train()
    best = SegformerForSemanticSegmentation.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same({name: weight for name, weight in best.state_dict().items()}, weights(trainer))


@pytest.mark.parametrize("decided", [False, True])
def test_a_key_of_ones_own_function(tmp_path, decided):
    before = (lambda logits, labels: logits.argmax(1)) if decided else None
    model = Plain() if decided else segformer()
    trainer = make_trainer(
        tmp_path, model, compute_metrics=compute_metrics, preprocess_logits_for_metrics=before,
        arguments={"max_steps": 30, "max_recorded_predictions": 2_000},
    )  # fmt: skip
    trainer.train()
    assert trainer.loss_report.metric == "mean_iou"
    assert trainer.metric.signature.startswith("mean_iou|compute_metrics")
    assert trainer.evaluate()["eval_mean_iou"] > 0.3


@pytest.mark.parametrize("fails", ["size", "rows"])
def test_a_key_of_a_function_that_no_batch_can_be_handed_to_stops_no_run(tmp_path, monkeypatch, fails):
    def of_all(evaluation):
        assert len(evaluation.label_ids) == 90, "it wants all that is evaluated"
        return {"sharpness": 0.5}

    if fails == "size":
        monkeypatch.setattr(wanted_metric, "MOST_EVALUATION_BYTES", 2**20)
    trainer = make_trainer(tmp_path, Plain(), "sharpness", compute_metrics=of_all, arguments={"max_steps": 2})
    trainer.train()
    why = "MiB for each example.*preprocess_logits_for_metrics=" if fails == "size" else "wants all that is evaluated"
    wanted = f"cannot be called on a training batch .*{why}.*known by the name 'sharpness'"
    assert re.search(wanted, trainer.loss_report.reason)
    assert trainer.evaluate()["eval_sharpness"] == 0.5


@pytest.mark.parametrize("metric", ["dice", "pixel_accuracy"])
def test_a_plain_module_gets_better_on_the_soft_metric(tmp_path, metric):
    model = Plain()
    trainer = make_trainer(tmp_path, model, metric, surrogate=SurrogateForSegmentation.for_metric(metric))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1


def test_hand_made_losses_find_pixels(tmp_path):
    for name in ("lovasz", "dice", "focal"):
        trainer = make_trainer(tmp_path, Plain(), None, surrogate=name, arguments={"max_steps": 2})
        trainer.train()
        assert type(trainer.surrogate) is SurrogateForSegmentation


class Boxes(Plain):
    """What DETR or Mask2Former is given: lists, which no surrogate reads."""

    def forward(self, pixel_values, labels=None, mask_labels=None, class_labels=None):
        given = torch.stack([each["boxes"] for each in labels]) if labels else torch.stack(mask_labels)
        logits = self.layer(pixel_values)
        return {"loss": (logits.mean() - given.float().mean()).square(), "logits": logits}


def boxes(rows):
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {
        "pixel_values": pixels,
        "labels": [{"boxes": torch.rand(2, 4), "class_labels": torch.ones(2)} for _ in rows],
    }


def masks(rows):
    pixels = torch.stack([row["pixel_values"] for row in rows])
    lists = {"mask_labels": [torch.ones(2, 16, 16)] * len(rows), "class_labels": [torch.ones(2).long()] * len(rows)}
    return {"pixel_values": pixels} | lists


@pytest.mark.parametrize(
    ("collator", "names", "given"),
    [
        (boxes, ["labels"], "labels list"),
        (masks, ["mask_labels", "class_labels"], "mask_labels list, class_labels list"),
    ],
    ids=["detection", "instances"],
)  # fmt: skip
def test_lists_of_boxes_and_masks_stay_on_the_models_own_loss(tmp_path, collator, names, given):
    options = {"data_collator": collator, "arguments": {"max_steps": 3, "label_names": names}}
    trainer = make_trainer(tmp_path, Boxes(), **options)
    trainer.train()
    trainer.train()
    assert "own loss" in trainer.loss_report.verdict
    assert given in trainer.loss_report.reason
    options["arguments"] = {"max_steps": 3, "label_names": names}
    asked = make_trainer(tmp_path, Boxes(), surrogate=SurrogateForSegmentation.for_metric("mean_iou"), **options)
    with pytest.raises(ValueError, match=f"the batch has {given}.*transformers' Trainer.*Semantic segmentation has a"):
        asked.train()
