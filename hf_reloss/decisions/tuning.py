"""Fitting a decision rule by a metric, and keeping it only if it gains on examples that it was not fitted on."""

import time
from typing import Any, NamedTuple

import torch

from ..metrics import AdditiveMetric, Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.bootstrap import bootstrapped, interval
from .base import DecisionRule
from .calibration import best_width, calibrate
from .credit import ExpectedCredit
from .elicitation import MOST_CALLS, ask, confusion_matrix, gradient, is_differentiable

FOLDS, FEWEST = 5, 50
"""Parts of the examples, each decided by rules that were fitted on the others; examples at least."""

SURE = 0.84
"""The share of bootstrap samples in which a rule has to gain: a gain of one standard error."""

ROUNDS = 4
"""How often the gradient of a metric is taken, each time at the decisions that the last one led to."""

SECONDS = 4.0
"""How long a metric that can only be called is asked for credits, each time: twice for each part of the examples."""


class TunedDecision(NamedTuple):
    """What tuning a decision has come to.

    Attributes:
        rule: the rule; None if argmax is kept, for no gain could be told from chance.
        before: the metric of argmax.
        after: that of rules on examples that they were not fitted on.
        low, high: of the difference, its 95 % interval by a paired bootstrap.
        examples: how many there are.
        metric: its name.
        decided: [n] int64, what is decided for these examples, by rules that were not fitted on them.
        fitted: the rule of expected credit, whether or not it is kept.
    """

    rule: DecisionRule | None
    before: float
    after: float
    low: float
    high: float
    examples: int
    metric: str
    decided: torch.Tensor
    fitted: DecisionRule

    def __str__(self) -> str:
        gain = f"{self.after - self.before:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        kept = f"gained {gain} {self.metric}" if self.rule is not None else f"argmax is kept: {gain} {self.metric}"
        return f"decision: {kept}, cross-fitted on {self.examples:,} held-out examples ({self.before:.4f} before)"


def tune_decision(logits: torch.Tensor, labels: torch.Tensor, metric: Metric | Any, *, seed: int = 0) -> TunedDecision:
    """Fits a decision rule by a metric.

    Two rules are tried: the most likely class by calibrated probabilities, with a bias for each class, and the class of
    the highest expected credit, for a credit matrix that is the metric's gradient or, of a function, asked of it. Each
    is fitted on four fifths of the examples and decides the other fifth, five times over. The first is kept if it is
    better than argmax, the second if it is better than what was kept: in 84 % of a paired bootstrap's samples, a gain
    of one standard error. What is kept is fitted again on all examples.

    Args:
        logits: [n, C] float, of examples that the model has not been trained on.
        labels: [n] int64, -100 where it does not count.
        metric: of class decisions, as `load_metric` takes it.
        seed: of the parts and the bootstrap.

    Raises:
        ValueError: for logits or labels of another shape, labels out of range, fewer than 50 examples, or a metric of
            something else than class decisions.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"A decision is tuned on logits [n, C] and labels [n], but got {list(logits.shape)} and "
            f"{list(labels.shape)}."
        )
    metric, counts = load_metric(metric), labels != IGNORED_LABEL
    logits, labels = logits[counts].double().cpu(), labels[counts].long().cpu()
    if len(labels) < FEWEST:
        raise ValueError(f"{len(labels)} examples are too few to tune a decision on: {FEWEST} or more.")
    if labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(
            f"Labels must be 0 to {logits.shape[-1] - 1}, or -100 to be ignored, but they are {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    if not judges_decisions(metric, logits, labels):
        raise ValueError(
            f"{metric.name} scores logits, or something else than which class is decided for, so there is no decision "
            "to tune by it: pass metric= one of class decisions, such as 'accuracy' or 'f1'."
        )
    part = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % FOLDS
    width = best_width(logits, labels, seed)  # one number, chosen by likelihood: the same for all parts
    fitted = _fitted_rules(logits, labels, metric, width)
    known = fitted[-1].credit if _is_mean(metric, labels, logits.argmax(-1), fitted[-1].credit) else None
    decided = [logits.argmax(-1), *(torch.empty_like(labels) for _ in fitted)]
    for fold in range(FOLDS):
        rules = _fitted_rules(logits[part != fold], labels[part != fold], metric, width, known)
        for chosen, rule in zip(decided[1:], rules, strict=True):
            chosen[part == fold] = rule.decide(logits[part == fold])
    sign = 1.0 if metric.higher_is_better else -1.0
    ways = [metric.as_predictions(chosen, logits.shape[-1]) for chosen in decided]
    scores = sign * bootstrapped(metric, ways, labels, len(labels), seed)
    kept = 0
    for candidate in range(1, len(decided)):
        if (scores[candidate] > scores[kept]).double().mean() >= SURE:
            kept = candidate
    shown = kept or len(fitted)
    before, after = (metric.compute(ways[chosen], labels) for chosen in (0, shown))
    low, high = interval(sign * (scores[shown] - scores[0]))
    found = fitted[kept - 1] if kept else None
    return TunedDecision(found, before, after, low, high, len(labels), metric.name, decided[kept], fitted[-1])


def judges_decisions(metric: Metric, logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether a metric sees no more of logits [n, C] than which is the highest, as accuracy does and ROC AUC does not.

    Args:
        metric: of logits and labels.
        logits, labels: some examples.
    """
    try:
        decided = metric.as_predictions(logits.argmax(-1), logits.shape[-1])
        found = metric.compute(logits, labels), metric.compute(decided, labels)
    except Exception:  # of somebody's own function, too
        return False
    return abs(found[0] - found[1]) < 1e-9


def _fitted_rules(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, width: float, credit: torch.Tensor | None = None
) -> tuple[ExpectedCredit, ExpectedCredit]:
    """The most likely class, and the class of the highest expected credit, which may be known already."""
    temperature, biases = calibrate(logits, labels, width)
    likeliest = ExpectedCredit(temperature, biases, torch.eye(logits.shape[-1], dtype=torch.float64))
    probabilities = (logits / temperature + biases).softmax(-1)
    if credit is None:
        credit = _credit(probabilities, labels, metric)
    return likeliest, ExpectedCredit(temperature, biases, credit)


def _credit(probabilities: torch.Tensor, labels: torch.Tensor, metric: Metric) -> torch.Tensor:
    """What decisions are worth [C, C], more being better."""
    classes, sign = probabilities.shape[-1], 1.0 if metric.higher_is_better else -1.0
    credit = best = torch.eye(classes, dtype=torch.float64)
    highest, is_known = -torch.inf, is_differentiable(metric, classes)
    for _ in range(ROUNDS if is_known else 2):
        decided = (probabilities @ credit).argmax(-1)
        if is_known:
            assert isinstance(metric, AdditiveMetric)
            # Probabilities stand for labels: they are less noisy, and as right, once they are calibrated.
            score, slopes = gradient(metric, confusion_matrix(probabilities, decided, classes))
        else:
            score, slopes = _asked(metric, labels, decided, probabilities)
        if sign * score > highest:
            highest, best = sign * score, credit
        if not is_known and _is_mean(metric, labels, decided, sign * slopes):
            return sign * slopes
        credit = sign * slopes
    return best


def _asked(
    metric: Metric, labels: torch.Tensor, decided: torch.Tensor, probabilities: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """The score of decisions, and what others were worth, for as long as there is time."""
    predictions, seconds, score = metric.as_predictions(decided, probabilities.shape[-1]), [], 0.0
    for _ in range(3):  # the first call may be slow
        begun = time.perf_counter()
        score = metric.compute(predictions, labels)
        seconds.append(time.perf_counter() - begun)
    calls = min(MOST_CALLS, max(probabilities.shape[-1], round(SECONDS / max(1e-9, min(seconds)))))
    return score, ask(metric, labels, decided, probabilities, calls)


def _is_mean(metric: Metric, labels: torch.Tensor, decided: torch.Tensor, credit: torch.Tensor) -> bool:
    """Whether a metric is a mean of credits, as a function may be: then they are the same for all examples."""
    classes, sign = len(credit), 1.0 if metric.higher_is_better else -1.0
    if is_differentiable(metric, classes):
        return False
    right = metric.compute(metric.as_predictions(labels, classes), labels)
    for seed in range(3):
        others = torch.randint(classes, labels.shape, generator=torch.Generator().manual_seed(seed))
        mixed = torch.where(others % 2 == 0, decided, others)
        change = sign * (metric.compute(metric.as_predictions(mixed, classes), labels) - right)
        if abs(change - float(credit[labels, mixed].mean())) > 1e-3 * float(credit.abs().max()):
            return False
    return True
