"""Functions of libraries and of one's own: what they get, what they give, and what is found out about them."""

import numpy as np
import pytest
import sacrebleu
import scipy.stats
import torch
from sklearn.metrics import f1_score, log_loss
from torch import nn

from hf_reloss import load_metric
from hf_reloss.metrics import ComputeMetrics


@pytest.mark.parametrize("name", ["pearsonr", "spearmanr", "kendalltau"])
def test_results_of_scipy_are_their_statistic(name):
    predictions, references = torch.randn(30).double(), torch.randn(30).double()
    function = getattr(scipy.stats, name)
    metric = load_metric(function)
    assert metric.compute(predictions, references) == pytest.approx(function(predictions, references).statistic)
    assert load_metric(function, key="pvalue").compute(predictions, references) < 1
    assert metric.higher_is_better
    assert metric.direction_known


def test_a_corpus_of_sacrebleu_has_references_in_streams():
    predictions, references = ["a cat sat on the mat", "no"], [["the cat sat on the mat", "a cat sat"], ["yes", "no"]]
    expected = sacrebleu.corpus_chrf(predictions, [*map(list, zip(*references, strict=True))]).score
    assert load_metric(sacrebleu.corpus_chrf).compute(predictions, references) == pytest.approx(expected)
    first = [given[0] for given in references]
    expected = sacrebleu.corpus_bleu(predictions, [first]).score
    assert load_metric(sacrebleu.corpus_bleu).compute(predictions, first) == pytest.approx(expected)


class Module(nn.Module):
    """As those of torchmetrics: it adds up what it is given."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.given, self.taken = [], []

    def update(self, preds, target):
        self.given.append(preds)
        self.taken.append(target)

    def compute(self):
        preds, target = torch.cat(self.given), torch.cat(self.taken)
        preds = preds.argmax(-1) if preds.dim() > target.dim() else preds > 0.5
        return torch.tensor(f1_score(target, preds, average="macro"))


def of_torchmetrics(name):
    return type(name, (Module,), {"__module__": "torchmetrics.classification"})()


def test_modules_of_torchmetrics_get_tensors_and_forget():
    logits, labels = torch.randn(40, 3), torch.randint(3, (40,))
    metric = load_metric(of_torchmetrics("MulticlassF1Score"))
    expected = f1_score(labels, logits.argmax(-1), average="macro")
    index = torch.arange(40)[None].expand(2, -1)
    assert metric.score_groups(logits, labels, index).tolist() == pytest.approx([expected] * 2)
    of_two = load_metric(of_torchmetrics("BinaryF1Score"))
    expected = f1_score(labels % 2, logits[:, :2].argmax(-1), average="macro")
    assert of_two.compute(logits[:, :2], labels % 2) == pytest.approx(expected)


def test_of_several_numbers_it_is_the_mean_and_what_is_no_number_is_refused():
    assert load_metric(lambda predictions, references: [0.5, 1.0]).compute([0], [0]) == 0.75
    assert load_metric(lambda predictions, references: torch.tensor(2.0)).compute([0], [0]) == 2.0
    for wrong in ((1.0, 2.0), None, "good", object()):
        metric = load_metric(lambda predictions, references, wrong=wrong: wrong, name="mine")
        with pytest.raises(ValueError, match=r"'mine' gave .* which is no number"):
            metric.compute([0], [0])


def test_options_for_each_example_are_cut_with_their_group():
    sources = ["a", "bb", "ccc", "dddd"]

    def copied(predictions, references, sources, labels):
        assert labels == [0, 1, 2, 3]  # of classes, though they are as many
        return float(np.mean([p == s for p, s in zip(predictions, sources, strict=True)]))

    metric = load_metric(copied, sources=sources, labels=[0, 1, 2, 3], higher_is_better=False)
    groups = torch.tensor([[0, 1], [2, 3], [3, 0]])
    assert metric.score_groups(["a", "x", "ccc", "y"], ["r"] * 4, groups).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="sources has 4 entries, for 2 predictions"):
        metric.compute(["a", "b"], ["r", "r"])


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (lambda p, y: float((p == y).mean()), True),
        (lambda p, y: float((p != y).mean()), False),
        (lambda p, y: {"what": float(np.abs(p - y).mean())}, False),
    ],
)
def test_a_direction_is_asked_of_data_and_said_once(function, more, caplog):
    metric = load_metric(function, name="what")
    assert not metric.direction_known
    labels = torch.arange(30) % 3
    metric.compute(labels.roll(1), torch.zeros_like(labels))  # nothing can be found where all of them are the same
    assert not metric.direction_known
    for _ in range(2):
        metric.compute(torch.randn(30, 3), labels)
    assert metric.direction_known
    assert metric.higher_is_better is more
    assert caplog.text.count("is taken to be better") == 1
    assert load_metric(function, name="what", higher_is_better=not more).higher_is_better is not more


def test_the_direction_of_texts_and_of_logits_is_asked_too():
    def shared(generated_text, y):
        return float(np.mean([len({*a} & {*b}) for a, b in zip(generated_text, y, strict=True)]))

    metric = load_metric(shared)
    metric.compute(["ab", "cd", "ef"], ["ax", "cx", "ex"])
    assert (metric.direction_known, metric.higher_is_better) == (True, True)
    metric = load_metric(lambda outputs, y: log_loss(y, outputs), class_indices=False, name="surprise")
    metric.compute(torch.randn(30, 3, dtype=torch.float64).softmax(-1), torch.arange(30) % 3)
    assert (metric.direction_known, metric.higher_is_better) == (True, False)


def test_an_order_that_matters_and_has_no_names_is_said(caplog):
    def first(a, b):
        return float(np.abs(a - b).sum() / a.sum())

    assert load_metric(first, name="share error").compute([1.0, 2.0], [1.0, 3.0]) == pytest.approx(1 / 3)
    assert "gets predictions first, then references, which matters (0.3333, the other way round 0.25)" in caplog.text


def test_compute_metrics_is_a_metric_by_its_one_argument():
    def compute_metrics(evaluation):
        share = float((evaluation.predictions.argmax(-1) == evaluation.label_ids).mean())
        return {"eval_share": share, "missed": 1 - share}

    logits, labels = torch.randn(20, 3), torch.randint(3, (20,))
    expected = float((logits.argmax(-1) == labels).double().mean())
    metric = load_metric(compute_metrics, key="eval_share")
    assert isinstance(metric, ComputeMetrics)
    assert metric.compute(logits, labels) == pytest.approx(expected)
    missed = load_metric(compute_metrics, key="missed")
    assert missed.compute(logits, labels) == pytest.approx(1 - expected)
    assert not missed.higher_is_better  # as right predictions show
    with pytest.raises(KeyError, match=r"gave \['missed', 'share'\].*pass key="):
        load_metric(compute_metrics).compute(logits, labels)


@pytest.mark.parametrize("name", ["f1", "subset_accuracy"])
def test_labels_are_predicted_by_probabilities_as_by_logits(name):
    logits, labels = torch.randn(50, 4), torch.randint(2, (50, 4))
    options = {"average": "macro"} if name == "f1" else {}
    metric = load_metric(name, threshold=0.3, **options)
    decided = logits.sigmoid() > 0.3
    for predictions in (logits, logits.sigmoid(), decided.long(), decided.float()):
        assert metric.compute(predictions, labels) == pytest.approx(metric.compute(decided, labels))
    if name == "f1":
        expected = f1_score(labels, decided, average="macro")
        assert metric.compute(logits.sigmoid(), labels) == pytest.approx(expected)
