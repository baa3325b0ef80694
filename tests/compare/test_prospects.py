"""What predictions alone say of another loss and another decision, on real digits, held to scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import f1_score

from hf_reloss import load_metric
from hf_reloss.compare.prospects import prospects
from hf_reloss.compare.task import digit_predictions


@pytest.fixture(scope="module")
def digits():
    """Logits and labels of digits, by a model that has seen few of the higher ones."""
    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    kept = random.random(500) < 0.8 ** labels[:500]
    model = LogisticRegression(max_iter=200).fit(images[:500][kept] / 16, labels[:500][kept])
    return torch.from_numpy(model.decision_function(images[500:950] / 16)), torch.from_numpy(labels[500:950]).long()


def test_of_rare_digits_the_decision_gains_and_ranks_are_those_of_scipy(digits):
    logits, labels = digits
    found = prospects(logits, labels, load_metric("f1", average="macro"), seconds=1.0)
    assert found.score == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))
    assert found.decision.rule is not None
    assert 0 < found.decision.low < found.decision.after - found.decision.before < found.decision.high
    decided = found.decision.rule.decide(logits)
    assert f1_score(labels, decided, average="macro") > found.score + found.decision.low
    assert list(found.alignments) == ["cross_entropy", "soft metric", "learned"]
    assert found.alignments[found.best_aligned] == max(found.alignments.values())
    record = found.surrogate.config.record
    shown = record["held_out"]  # to four digits
    of_scipy = spearmanr(-np.array(shown["cross_entropy"]), shown["score"]).statistic
    assert found.alignments["cross_entropy"] == pytest.approx(
        of_scipy, abs=0.02 if record["eval_groups"] > 256 else 2e-3
    )
    assert "rank correlation with f1 on held-out groups: cross entropy 0." in str(found)
    assert "decision: gained +" in str(found)


def test_a_metric_of_scores_has_no_decision_and_few_rows_no_loss(digits):
    logits, labels = digits
    found = prospects(logits[:120], labels[:120], load_metric("accuracy"), seconds=1.0)
    assert found.surrogate is None
    assert found.alignments == {}
    assert "120 predictions are recorded, and 160 are the fewest" in found.no_surrogate_because
    assert found.decision.examples == 120
    found = prospects(logits[:400], labels[:400], load_metric("brier_score"), seconds=0.5)
    assert found.decision is None
    assert "brier_score scores logits" in found.no_decision_because
    assert list(found.alignments) == ["cross_entropy", "learned"]  # which has no soft form of its own
    assert "decision: brier_score scores logits" in str(found)


def test_of_several_labels_and_of_numbers(digits):
    logits, labels = digits
    several = torch.stack([labels % 2 == 0, labels > 5, labels > 7], dim=-1).long()
    scores = torch.stack([logits[:, ::2].logsumexp(-1) - logits[:, 1::2].logsumexp(-1), logits[:, 6], logits[:, 8]], -1)
    found = prospects(scores, several, load_metric("f1", average="macro"), seconds=0.5)
    assert next(iter(found.alignments)) == "binary_cross_entropy"
    assert found.score == pytest.approx(f1_score(several, scores > 0, average="macro"))
    assert found.decision.fitted.word == "thresholds"
    table, numbers = load_diabetes(return_X_y=True)
    values = torch.from_numpy(LinearRegression().fit(table[:150], numbers[:150]).predict(table[150:]))[:, None]
    found = prospects(values, torch.from_numpy(numbers[150:]), load_metric("pearsonr"), seconds=0.5)
    assert found.score == pytest.approx(np.corrcoef(values[:, 0], numbers[150:])[0, 1])
    assert list(found.alignments) == ["squared_error", "soft metric", "learned"]
    assert found.decision is None


def test_the_classifier_of_digits_comes_along():
    logits, labels = digit_predictions(some_are_rare=True)
    right = logits.argmax(-1) == labels
    assert logits.shape == (1397, 10)
    assert right[labels < 3].float().mean() > 0.9 > 0.7 > right[labels > 7].float().mean()
