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
        name: of the metric, such as `"mean_squared_error"`; with `neg_` in front, as in scikit-learn, more is better.
        of: the function or module that computes it; what it says as `higher_is_better`, as torchmetrics' modules do,
            counts more than the name.
    """
    known = getattr(of, "higher_is_better", None)
    if isinstance(known, bool):
        return not known
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return not LESS.isdisjoint(words) and "neg" not in words


def takes_truth_first(function: Callable[..., Any]) -> bool:
    """Whether a function takes what is right before what was predicted, as scikit-learn's do, by its first argument."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):  # a built-in function
        return False
    return first.lower() in TRUTHS


def takes_scores(function: Callable[..., Any]) -> bool:
    """Whether a function takes scores of classes and not decisions, by its first two arguments."""
    try:
        names = list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):  # a built-in function
        return False
    return any(name.lower() in SCORES for name in names)
