"""With two classes every metric is what scikit-learn computes."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F

from hf_reloss import (
    load_metric,
)
from hf_reloss.metrics.classification import ClassMetric
from hf_reloss.metrics.curves import CurveMetric
from hf_reloss.metrics.loading import _known

from ..losses.test_two_classes import EXAMPLES, LABELLINGS, LABELS, LOGITS


def best_precision(references, scores, recall):
    if not references.any():
        return math.nan
    precisions, recalls, _ = sklearn.metrics.precision_recall_curve(references, scores)
    return precisions[recalls >= recall].max()


THEIRS = {
    "accuracy": [({}, sklearn.metrics.accuracy_score, {})],
    "top_k_accuracy": [
        ({"k": k}, sklearn.metrics.top_k_accuracy_score, {"k": k, "labels": [0, 1]}) for k in (1, 2)
    ],
    **{
        name: [
            (options, getattr(sklearn.metrics, f"{name}_score"), options | {"zero_division": 0})
            for average in ("binary", "micro", "macro", "weighted")
            for options in [{"average": average} | ({"beta": 2.0} if name == "fbeta" else {})]
        ]
        for name in ("precision", "recall", "f1", "fbeta")
    },
    "balanced_accuracy": [
        ({"adjusted": adjusted}, sklearn.metrics.balanced_accuracy_score, {"adjusted": adjusted})
        for adjusted in (False, True)
    ],
    "cohen_kappa": [
        ({"weights": weights}, sklearn.metrics.cohen_kappa_score, {"weights": weights})
        for weights in (None, "linear", "quadratic")
    ],
    "matthews_correlation": [({}, sklearn.metrics.matthews_corrcoef, {})],
    "mean_iou": [({}, sklearn.metrics.jaccard_score, {"average": "macro"})],
    "dice": [({}, sklearn.metrics.f1_score, {"average": "macro"})],
    "pixel_accuracy": [({}, sklearn.metrics.accuracy_score, {})],
    "roc_auc": [({"average": average}, sklearn.metrics.roc_auc_score, {}) for average in ("macro", "weighted")],
    "average_precision": [
        ({"average": average}, sklearn.metrics.average_precision_score, {}) for average in ("macro", "weighted")
    ],
    "precision_at_recall": [({"min_recall": recall}, best_precision, {"recall": recall}) for recall in (0.5, 1.0)],
}  # fmt: skip
OF_MAPS = ("mean_iou", "dice", "pixel_accuracy")
OF_SCORES = ("top_k_accuracy", "roc_auc", "average_precision", "precision_at_recall")
"""Those for which scikit-learn takes the score of the second class."""


def test_no_metric_of_classes_is_left_out():
    families = (ClassMetric, CurveMetric)
    of_classes = {
        name
        for name, kind in _known().items()
        if issubclass(kind, families) and kind.__module__.startswith("hf_reloss")
    }
    # One is of several labels for each example, the other of whole maps.
    assert THEIRS.keys() == of_classes - {"subset_accuracy", "boundary_iou"}


@pytest.mark.parametrize("labels", LABELLINGS.values(), ids=LABELLINGS.keys())
@pytest.mark.parametrize(
    ("name", "options", "function", "their_options"),
    [(name, *case) for name, cases in THEIRS.items() for case in cases],
)
def test_metrics_are_those_of_scikit_learn(name, options, function, their_options, labels):
    metric, counts, every_logits = load_metric(name, **options), labels != -100, list(LOGITS.values())
    if name == "top_k_accuracy":  # of two equal logits, scikit-learn takes the first one, and of more the last one
        every_logits = [logits for logits in every_logits if (logits[:, 0] != logits[:, 1]).all()]
    wanted = []
    for logits in every_logits:
        theirs = logits[:, 1] - logits[:, 0] if name in OF_SCORES else logits.argmax(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted.append(function(labels[counts].numpy(), theirs[counts].numpy(), **their_options))
    ours, references = torch.cat(every_logits), labels.repeat(len(every_logits))
    if name in OF_MAPS:  # here of one pixel
        ours, references, labels = ours[..., None, None], references[:, None, None], labels[:, None, None]
    index = torch.arange(len(ours)).view(-1, 12)
    groups = metric.score_groups(ours, references, index)
    assert groups.tolist() == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert metric.compute(ours[:12], labels) == pytest.approx(wanted[0], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", THEIRS)
def test_labels_of_any_integer_type_are_scored(name):
    options = {"average": "macro"} if name in ("precision", "recall", "f1", "fbeta") else {}
    metric, logits, labels = load_metric(name, **options), LOGITS["random"], LABELS
    if name in OF_MAPS:
        logits, labels = logits.T[None, :, None], labels[None, None]
    expected = metric.compute(logits, labels)
    assert math.isfinite(expected)
    for dtype in (torch.int32, torch.int8, torch.uint8, torch.bool):
        assert metric.compute(logits, labels.to(dtype)) == expected
    assert metric.compute(logits.numpy(), labels.numpy().astype(np.uint8)) == expected


@pytest.mark.parametrize("labels", list(LABELLINGS.values())[:4], ids=list(LABELLINGS)[:4])
def test_recall_at_k_is_that_of_a_loop(labels):
    unit, hits = F.normalize(EXAMPLES, dim=-1), []
    number = [i for i in range(12) if labels[i] >= 0]
    for query in number:
        others = sorted((i for i in number if i != query), key=lambda i: -float(unit[query] @ unit[i]))
        hits.append(any(labels[i] == labels[query] for i in others[:2]))
    assert load_metric("recall_at_k", k=2).compute(EXAMPLES, labels) == pytest.approx(np.mean(hits))
