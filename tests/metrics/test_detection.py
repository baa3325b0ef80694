"""Mean average precision of boxes is that of pycocotools, in groups, too."""

import contextlib
import functools
import io
import json
import math
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from transformers import TrainingArguments

from hf_reloss import LossMetricMonitor, ReLossTrainer, batch_compute_metrics, load_metric
from hf_reloss.metrics import as_evaluate, detection
from hf_reloss.metrics.evaluation import _as_json
from hf_reloss.metrics.loading import metric_of

BOX = {"boxes": [[0, 0, 10, 10]], "labels": [1]}
FOUND = BOX | {"scores": [0.5]}


def drawn(seed, images=6, classes=3, most=6, crowds=False):
    """Images with objects, near which boxes are predicted, and others; some have neither. Scores are often equal."""
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(images):
        objects, others = generator.integers(0, most, 2)
        corners = generator.integers(0, 60, (objects, 2)).astype(float)
        true = np.concatenate([corners, corners + generator.integers(0, 120, (objects, 2))], axis=1)
        kinds = generator.integers(0, classes, objects)
        kept = generator.random(objects) < 0.8
        near = true[kept] + np.sort(generator.normal(0, 4, (kept.sum(), 2, 2)), axis=1).reshape(-1, 4)
        far = np.sort(generator.integers(0, 99, (others, 2, 2)), axis=1).reshape(-1, 4)
        boxes = np.concatenate([near, far]).round(1)
        labels = np.concatenate([kinds[kept], generator.integers(0, classes + 1, others)])  # one is in no reference
        scores = generator.integers(0, 8, len(boxes)) / 8
        predictions.append({"boxes": boxes, "scores": scores, "labels": labels})
        references.append({"boxes": true, "labels": kinds})
        if crowds:
            references[-1]["iscrowd"] = generator.integers(0, 2, objects)
            references[-1]["area"] = generator.integers(0, 12_000, objects)
    return predictions, references


def annotated(images):
    rows = [(place, image, row) for place, image in enumerate(images) for row in range(len(image["boxes"]))]
    found = []
    for number, (place, image, row) in enumerate(rows, 1):
        left, top, right, bottom = map(float, image["boxes"][row])
        own = {key: image[key][row] for key in ("area", "iscrowd") if key in image}
        found.append(
            {"id": number, "image_id": place, "category_id": int(image["labels"][row]), "iscrowd": 0}
            | {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top), **own}
            | ({"score": float(image["scores"][row])} if "scores" in image else {})
        )
    return found


@contextlib.contextmanager
def silence():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def theirs(predictions, references):
    """The twelve numbers that pycocotools sums up by; -1 where there is nothing."""
    boxes, objects = annotated(predictions), annotated(references)
    images = [{"id": place} for place in range(len(references))]
    kinds = [{"id": kind} for kind in sorted({each["category_id"] for each in boxes + objects})]
    with silence():
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "categories": kinds, "annotations": objects}
        truth.createIndex()
        found = truth.loadRes(boxes) if boxes else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


SUMMARY = {
    0: {}, 1: {"iou_threshold": 0.5}, 2: {"iou_threshold": 0.75}, 3: {"area": "small"}, 4: {"area": "medium"},
    5: {"area": "large"},
}  # fmt: skip


def same(ours, stat):
    return ours == pytest.approx(math.nan if stat == -1 else stat, abs=1e-12, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(1, 3), st.sampled_from([1, 3, 12]), st.booleans())
def test_it_is_that_of_pycocotools(seed, images, classes, most, crowds):
    predictions, references = drawn(seed, images, classes, most, crowds)
    stats = theirs(predictions, references) if images else np.full(12, -1)
    for place, options in SUMMARY.items():
        assert same(load_metric("box_map", **options).compute(predictions, references), stats[place]), options


@pytest.mark.parametrize("at_a_time", [1, detection.MOST_AT_A_TIME])
def test_groups_are_those_of_pycocotools_with_images_drawn_twice(at_a_time, monkeypatch):
    monkeypatch.setattr(detection, "MOST_AT_A_TIME", at_a_time)
    predictions, references = drawn(3, images=9, classes=4, crowds=True)
    index = torch.randint(9, (12, 7), generator=torch.Generator().manual_seed(0))
    groups = [([predictions[row] for row in rows], [references[row] for row in rows]) for rows in index.tolist()]
    assert any(len(set(rows)) < len(rows) for rows in index.tolist())
    stats = np.array([theirs(*group) for group in groups])
    for place, options in SUMMARY.items():
        metric = load_metric("box_map", **options)
        scores = metric.score_groups(predictions, references, index).tolist()
        assert all(map(same, scores, stats[:, place])), options
    assert len(set(stats[:, 0])) > 6


def test_each_image_is_matched_once_and_nothing_is_printed(monkeypatch, capsys):
    matched, evaluate = [], COCOeval.evaluateImg
    monkeypatch.setattr(COCOeval, "evaluateImg", lambda self, *of: matched.append(of[:2]) or evaluate(self, *of))
    load_metric("box_map").score_groups(*drawn(1, images=5, classes=2), torch.randint(5, (300, 8)))
    assert sorted(matched) == [(image, kind) for image in range(5) for kind in range(2)]
    assert capsys.readouterr().out == ""


def test_of_a_class_in_an_image_the_best_hundred_boxes_count():
    generator = np.random.default_rng(0)
    boxes = np.sort(generator.integers(0, 9, (150, 2, 2)), axis=1).reshape(-1, 4)
    predictions = [{"boxes": boxes, "scores": generator.random(150), "labels": np.ones(150, int)}]
    references = [{"boxes": boxes[::3], "labels": np.ones(50, int)}]
    assert same(load_metric("box_map").compute(predictions, references), theirs(predictions, references)[0])


@pytest.mark.parametrize("kind", ["lists", "arrays", "tensors", "bfloat16"])
def test_it_reads_boxes_of_any_format_and_type(kind):
    predictions, references = drawn(5, images=8)

    def made(image, box_format):
        first, last = np.array(image["boxes"]).reshape(-1, 2, 2).swapaxes(0, 1)
        size = last - first
        parts = {"xyxy": (first, last), "xywh": (first, size), "cxcywh": (first + size / 2, size)}[box_format]
        whole = image | {"boxes": np.concatenate(parts, axis=1)}
        if kind == "arrays":
            return {key: x.astype(np.float32 if key == "boxes" else x.dtype) for key, x in whole.items()}
        if kind == "lists":
            return {key: x.tolist() for key, x in whole.items()}
        tensors = {key: torch.from_numpy(x) for key, x in whole.items()}
        halved = {key: x.bfloat16() for key, x in tensors.items() if kind == "bfloat16" and key == "scores"}
        return tensors | halved

    expected = theirs(predictions, references)[0]
    assert 0.05 < expected < 0.95
    for box_format in ("xyxy", "xywh", "cxcywh"):
        ours, wanted = ([made(image, box_format) for image in side] for side in (predictions, references))
        score = load_metric("box_map", box_format=box_format).compute(ours, wanted)
        assert score == pytest.approx(expected, abs=1e-12 if kind != "arrays" else 1e-2)


NOTHING = {"boxes": [], "scores": [], "labels": []}


@pytest.mark.parametrize(
    ("predictions", "references", "score"),
    [
        ([FOUND], [BOX], 1.0),
        ([FOUND, NOTHING], [BOX, NOTHING], 1.0),
        ([NOTHING], [BOX], 0.0),
        ([FOUND | {"labels": [2]}], [BOX], 0.0),
        ([FOUND, NOTHING], [BOX, BOX], 51 / 101),  # recalls 0 to 0.5
        ([FOUND, FOUND | {"labels": [7]}], [BOX, NOTHING], 1.0),  # a class that no reference has
        ([FOUND, FOUND | {"scores": [0.9]}], [BOX, NOTHING], 0.5),
        ([FOUND], [BOX | {"iscrowd": [1]}], math.nan),
        ([FOUND], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}], math.nan),
        ([NOTHING], [NOTHING], math.nan),
        ([], [], math.nan),
    ],
)
def test_what_is_empty(predictions, references, score):
    metric = load_metric("box_map")
    assert metric.compute(predictions, references) == pytest.approx(score, nan_ok=True)
    assert metric.score_groups(predictions, references, torch.zeros(0, 3).long()).shape == (0,)


@pytest.mark.parametrize(
    ("predictions", "references", "why"),
    [
        ([FOUND] * 3, [BOX] * 2, "got 3 predictions and 2 references"),
        (FOUND, [BOX], "predictions as a list with a dictionary for each image, but got dict: put it into a list"),
        (torch.zeros(1, 4), [BOX], "but got Tensor"),
        ([FOUND], [[0, 0, 1, 1]], r"references\[0\] is list"),
        ([BOX], [BOX], r"with boxes, scores, labels, but predictions\[0\] is one with boxes, labels"),
        ([FOUND], [{"boxes": [], "class_labels": []}], "pass class_labels as labels"),
        ([FOUND], [BOX | {"boxes": [[0, 0, 1]]}], r"wants boxes \[n, 4\].* references\[0\] has boxes \[1, 3\]"),
        ([FOUND], [BOX | {"boxes": [0, 0, 1, 1]}], r"has boxes \[4\]"),
        ([FOUND], [BOX | {"boxes": [[0, 0, 1], [1]]}], r"a list of numbers, but references\[0\]\['boxes'\] is \[\[0"),
        ([FOUND], [BOX | {"labels": ["cat"]}], r"a list of numbers, but references\[0\]\['labels'\] is \['cat'\]"),
        ([FOUND], [BOX | {"labels": [0.5]}], r"class indices, but references\[0\]\['labels'\] has 0.5"),
        ([FOUND], [BOX | {"iscrowd": [0, 1]}], r"has boxes \[1, 4\], labels \[1\], iscrowd \[2\]"),
        ([FOUND | {"scores": 0.5}], [BOX], r"has boxes \[1, 4\], scores \[\], labels \[1\]"),
        ([FOUND | {"scores": [math.nan]}], [BOX], r"wants scores .* predictions\[0\]\['scores'\] has nan"),
        ([FOUND, FOUND | {"boxes": [[0, 0, 9, math.inf]]}], [BOX] * 2, r"finite boxes .* predictions\[1\]\['boxes'\]"),
        ([FOUND | {"boxes": [[9, 0, 3, 1]]}], [BOX], r"has \[9.0, 0.0, 3.0, 1.0\], which is none by box_format='xyxy'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(predictions, references, why):
    with pytest.raises(ValueError, match=why):
        load_metric("box_map").compute(predictions, references)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"box_format": "yxyx"}, "box_format is one of xyxy, xywh, cxcywh, but got 'yxyx'"),
        ({"area": "tiny"}, "area is one of all, small, medium, large"),
        ({"iou_threshold": 50}, "above 0, up to 1, or None .* got 50"),
        ({"iou_thresholds": [0.5]}, "takes box_format, iou_threshold, area, but got iou_thresholds"),
    ],
)
def test_options_that_are_not_known(options, why):
    with pytest.raises(ValueError, match=why):
        load_metric("box_map", **options)


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"This needs pycocotools: pip install 'hf-reloss\[detection\]'"):
        load_metric("box_map")


def test_its_signature_and_module():
    metric = load_metric("box_map", iou_threshold=0.5)
    assert metric.signature.startswith("box_map|box_format:xyxy|iou_threshold:0.5|area:all|pycocotools:2")
    assert metric_of(metric.signature) == metric
    predictions, references = drawn(2)
    module, tensors = as_evaluate("box_map"), [{key: torch.tensor(x) for key, x in each.items()} for each in references]
    module.add(prediction=predictions[0], reference=references[0])
    module.add_batch(predictions=predictions[1:], references=tensors[1:])
    score = load_metric("box_map").compute(predictions, references)
    assert module.compute() == {"box_map": score}
    shared = ([json.loads(row) for row in _as_json(side)] for side in (predictions, tensors))  # by several processes
    assert load_metric("box_map").compute(*shared) == score
    with pytest.raises(ValueError, match="box_map is not a sum over predictions"):
        batch_compute_metrics("box_map")


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, pixel_values, labels=None):
        return {"loss": self.head(pixel_values).square().mean(), "logits": self.head(pixel_values)[:, None]}


def collate(rows):
    return {"pixel_values": torch.ones(len(rows), 4), "labels": [{"boxes": torch.rand(1, 4)} for _ in rows]}


def test_no_run_is_for_it(tmp_path):
    rows = [{"pixel_values": 0}] * 8
    args = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no")
    make = functools.partial(ReLossTrainer, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    why = "box_map can be reported, not trained on: .*transformers' Trainer.*compute_metrics"
    for metric in ("box_map", "eval_box_map", load_metric("box_map", iou_threshold=0.5)):
        with pytest.raises(ValueError, match=why):
            make(Detector(), args, metric=metric)
    with pytest.raises(ValueError, match=why):
        make(Detector(), args, surrogate="focal", metric="box_map")
    with pytest.raises(ValueError, match=why):
        make(Detector(), args, surrogate="focal", metric="accuracy", callbacks=[LossMetricMonitor("box_map")]).train()


def test_a_key_of_that_name_is_reported_of_a_run_on_the_models_own_loss(tmp_path):
    def compute_metrics(evaluation):
        return {"box_map": load_metric("box_map").compute([FOUND], [BOX])}

    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no", eval_do_concat_batches=False
    )
    rows = [{"pixel_values": 0}] * 8
    trainer = ReLossTrainer(Detector(), args, collate, rows, rows, compute_metrics=compute_metrics, metric="box_map")
    trainer.train()
    assert "load_metric('box_map') scores boxes" in trainer.loss_report.reason
    assert trainer.evaluate()["eval_box_map"] == pytest.approx(1)
