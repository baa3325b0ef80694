"""What is better, more or less of a metric, and what a function takes: by the words that they go by."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

LESS = {
    *("error", "errors", "mae", "mape", "mase", "mse", "msle", "rmse", "rmsle", "smape"),
    *("bpc", "brier", "ece", "loss", "losses", "nll", "perplexity", "ppl"),
    *("cer", "charcut", "eer", "mer", "ter", "wer", "wil"),
    *("cost", "costs", "distance", "divergence", "fid", "regret"),
}
"""Words in the names of metrics of which less is better."""

MORE = {
    *("accuracy", "auc", "correlation", "credit", "f1", "precision", "recall", "similarity"),
    *("gain", "neg", "profit", "reduction", "reward", "saved", "saving", "savings", "utility"),
}
"""Words beside which those of `LESS` count for nothing, as in `neg_mean_squared_error` or `error_reduction`."""

TRUTHS = {
    *("actual", "actuals", "correct", "expected", "gold", "golds", "truth", "truths"),
    *("ground_truth", "ground_truths", "gt", "y", "y_true"),
    *("annotations", "answers", "label", "label_ids", "labels", "target", "targets"),
    *("list_of_references", "ref", "reference", "references", "refs"),
}
"""What an argument of a function is called that takes what is right."""

PREDICTIONS = {
    *("predicted", "prediction", "predictions", "pred", "preds", "y_hat", "y_pred", "y_preds", "decisions", "decided"),
    *("candidate", "candidates", "generated", "hyp", "hyps", "hypotheses", "hypothesis", "system", "translations"),
    *("input", "inputs", "logit", "logits", "output", "outputs"),
}
"""What an argument of a function is called that takes what was predicted."""

SCORES = {
    *("y_score", "y_scores", "y_prob", "y_proba", "y_probas", "prediction_scores"),
    *("prob", "probas", "probs", "probabilities", "score", "scores"),
}
"""What an argument of a function is called that takes scores of classes, not decisions."""


def direction_of(name: str, of: Any = None) -> bool | None:
    """Whether more of a metric is better, by what it says itself or is called; None where neither tells.

    Args:
        name: of the metric, such as `"mean_squared_error"`; with one of the words `MORE` in it, such as `neg`, which
            scikit-learn puts in front, more is better.
        of: the function or module that computes it; what it says as `higher_is_better`, as torchmetrics' modules do,
            counts more than the name.
    """
    known = getattr(of, "higher_is_better", None)
    if isinstance(known, bool):
        return known
    words = set(re.findall(r"[a-z]+\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    if words & MORE:
        return True
    return False if words & LESS else None


def asked_direction(score: Callable[[Any], float], references: Any, like: Any) -> tuple[bool, float, float] | None:
    """Whether more of a metric is better, by what it says of right predictions and of wrong ones.

    Args:
        score: the metric of predictions for these references.
        references: a tensor's array [N, ...] or a list of texts.
        like: predictions, which say of what kind right ones are: the references themselves, the first of several
            references, or scores of classes [N, C] for class indices [N].

    Returns:
        The answer, the score of right predictions and that of wrong ones; None where it cannot be had: where right
        predictions are of another kind than references, all references are the same, the metric fails or finds no
        difference, or its answers contradict each other.
    """
    right = _right_predictions(references, like)
    if right is None:
        return None
    found = []
    try:
        best = float(score(right))
        for shift in (1, 2, len(right) // 2):
            rows = np.roll(np.arange(len(right)), shift)
            wrong = right[rows] if isinstance(right, np.ndarray) else [right[row] for row in rows]
            found.append(float(score(wrong)))
    except Exception:  # of somebody's own function
        return None
    differences = [best - other for other in found if other != best]
    if not differences or not all(map(math.isfinite, (best, *found))):
        return None
    signs = {difference > 0 for difference in differences}
    return (signs.pop(), best, min(found) if best > min(found) else max(found)) if len(signs) == 1 else None


def _right_predictions(references: Any, like: Any) -> Any:
    """Predictions that are right, of the kind of `like`; None where references do not say what these are."""
    if len(references) < 2:
        return None
    if isinstance(references, np.ndarray):
        if not isinstance(like, np.ndarray) or references.dtype.kind not in "biuf":
            return None
        if like.shape == (len(references), 1) and references.ndim == 1:  # of one number each
            return references[:, None].astype(like.dtype)
        if like.ndim == references.ndim + 1 == 2 and references.dtype.kind in "iu":
            known = (references >= 0) & (references < like.shape[1])
            return np.eye(like.shape[1], dtype=like.dtype)[references] if known.all() else None
        return references.astype(like.dtype) if like.shape == references.shape else None
    if all(isinstance(each, str) for each in like):
        first = [each if isinstance(each, str) else next(iter(each or [None]), None) for each in references]
        return first if all(isinstance(each, str) for each in first) else None
    return None


def takes_truth_first(function: Callable[..., Any]) -> bool | None:
    """Whether a function takes what is right before what was predicted, as those of scikit-learn do.

    Returns:
        True where its first argument is called so (`TRUTHS`), and its second is not; None where neither is called so,
        nor as predictions are (`PREDICTIONS`).
    """
    first, second = [*_arguments(function), "", ""][:2]
    if first in TRUTHS and second not in TRUTHS:
        return True
    known = {first, second} & TRUTHS or {first, second} & PREDICTIONS
    if second in PREDICTIONS and first not in PREDICTIONS:
        return True
    return False if known else None


def takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function takes one argument only, as a Trainer's `compute_metrics` does; others have defaults."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    if any(argument.kind is argument.VAR_POSITIONAL for argument in arguments):
        return False
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([argument for argument in arguments if argument.kind in by_place]) == 1


def takes_several(function: Callable[..., Any]) -> bool:
    """Whether a function takes several predictions and references: its first two arguments are in the plural."""
    names = _arguments(function)[:2]
    return len(names) == 2 and all(name.endswith("s") for name in names)


def takes_scores(function: Callable[..., Any]) -> bool:
    """Whether a function takes scores of classes and not decisions, by its first two arguments."""
    return not SCORES.isdisjoint(_arguments(function)[:2])


def _arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments, in small letters; none of a built-in one."""
    try:
        return [name.lower() for name in inspect.signature(function).parameters]
    except (TypeError, ValueError):
        return []
