"""What is better, more or less of a metric, and what a function takes: by the words that they go by."""

import inspect
import re
from collections.abc import Callable
from typing import Any

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
    *("ref", "reference", "references", "refs"),
}
"""What the first argument of a function is called that takes what is right before what was predicted."""


SCORES = {
    *("y_score", "y_scores", "y_prob", "y_proba", "y_probas", "prediction_scores"),
    *("prob", "probas", "probs", "probabilities", "score", "scores"),
}
"""What an argument of a function is called that takes scores of classes, not decisions."""


def less_is_better(name: str, of: Any = None) -> bool:
    """Whether less of a metric is better.

    Args:
        name: of the metric, such as `"mean_squared_error"`; with one of the words `MORE` in it, such as `neg`, which
            scikit-learn puts in front, more is better.
        of: the function or module that computes it; what it says as `higher_is_better`, as torchmetrics' modules do,
            counts more than the name.
    """
    known = getattr(of, "higher_is_better", None)
    if isinstance(known, bool):
        return not known
    words = re.findall(r"[a-z]+\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return not LESS.isdisjoint(words) and MORE.isdisjoint(words)


def takes_truth_first(function: Callable[..., Any]) -> bool:
    """Whether a function takes what is right before what was predicted, as those of scikit-learn do.

    Its first argument is called so (`TRUTHS`), and its second is not.
    """
    first, second = [*_arguments(function), "", ""][:2]
    return first in TRUTHS and second not in TRUTHS


def takes_scores(function: Callable[..., Any]) -> bool:
    """Whether a function takes scores of classes and not decisions, by its first two arguments."""
    return not SCORES.isdisjoint(_arguments(function)[:2])


def _arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments, in small letters; none of a built-in one."""
    try:
        return [name.lower() for name in inspect.signature(function).parameters]
    except (TypeError, ValueError):
        return []
