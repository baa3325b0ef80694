"""Finding a metric: by its name, by its signature, from a module of `evaluate`, from a function."""

import ast
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .adapters import CallableMetric, ComputeMetrics, EvaluateMetric
from .base import BAR, Metric
from .directions import direction_of, takes_one
from .official import is_official, place_of
from .per_example import PerExampleMetric

logger = logging.get_logger(__name__)


def load_metric(
    metric: "str | Metric | Callable[..., Any]",
    config_name: str | None = None,
    *,
    per_example: bool = False,
    **options: Any,
) -> Metric:
    """A metric from its name, from a module of `evaluate`, or from a function.

    A module of `evaluate` that is known here by its name is replaced by that metric, for the same score in less time.
    Any other is called group by group, as functions are.

    Args:
        metric: a name (`"f1"`), an `evaluate.EvaluationModule`, a function (predictions, references) -> number
            or dict, a Trainer's `compute_metrics`, which takes one argument, or a `Metric`, which is returned as it is.
        config_name: of a name, what goes with it in `evaluate.load(name, config_name)`: the task of a benchmark, as in
            `load_metric("glue", "cola")`, or "multilabel".
        per_example: whether a function or a module scores examples one by one: each is scored once then, and a group
            by the mean (`PerExampleMetric`).
        options: the metric's own (`average="macro"`), or those of the adapter: `key`, `higher_is_better`, and for
            functions `name` and `class_indices`.

    Raises:
        ValueError: for a name that is not known, with those that are near; for an option that the metric does not have.

    Example:
        >>> load_metric("f1", average="macro").compute([0, 1, 1, 2], [0, 1, 0, 2])
        0.7777777777777777
    """
    if per_example:
        return _per_example(metric, options)
    if isinstance(metric, Metric):
        if options:
            raise ValueError(f"{metric.name!r} is a metric already, so {', '.join(sorted(options))} cannot be set.")
        return metric
    if isinstance(metric, str):
        return _by_name(metric, config_name, options)
    if config_name is not None:
        raise ValueError(f"{config_name!r} goes with the name of a metric, but this is {type(metric).__name__}.")
    if _is_evaluate_module(metric):
        ours = getattr(metric, "metrics", None)  # of `as_evaluate`
        return _of_ours(ours, options) if ours else _of_module(metric, options)
    if callable(metric):
        return ComputeMetrics(metric, **options) if takes_one(metric) else CallableMetric(metric, **options)
    raise ValueError(f"A metric is a name, a module of evaluate or a function, but this is {type(metric).__name__}.")


def metrics_of_module(name: str, options: dict[str, Any]) -> list[Metric]:
    """The metrics that a module of `evaluate` gives scores of, such as `"rouge"`; none if it is the name of a metric.

    Args:
        name: of the module.
        options: of all of them.
    """
    known = _known()
    of_several = name in known and _takes(known[name], {"key": ""})  # such as rouge, which are no metrics themselves
    if name in known and (not of_several or "key" in options):
        return []
    kinds = [kind for kind in known.values() if kind.evaluate_module == name and not _takes(kind, {"key": ""})]
    return [_by_name(kind.name, None, options) for kind in kinds]


def _of_ours(metrics: list[Metric], options: dict[str, Any]) -> Metric:
    """The metric of a module of `as_evaluate`, of several the one with a `key`."""
    if len(metrics) == 1:
        return load_metric(metrics[0], **options)
    chosen = [metric for metric in metrics if metric.evaluate_key == options.get("key")]
    if not chosen:
        raise ValueError(f"This gives several scores: pass key= one of {', '.join(m.evaluate_key for m in metrics)}.")
    return load_metric(chosen[0], **{name: value for name, value in options.items() if name != "key"})


def _per_example(metric: Any, options: dict[str, Any]) -> Metric:
    if isinstance(metric, str | Metric) or (_is_evaluate_module(metric) and getattr(metric, "metrics", None)):
        name = metric if isinstance(metric, str) else getattr(metric, "name", "")
        raise ValueError(
            f"per_example=True is for functions and modules of evaluate, but {name!r} is a metric of this package: it "
            "counts each example once already where it can, so leave per_example out."
        )
    if _is_evaluate_module(metric):
        return PerExampleMetric(EvaluateMetric(metric, **options))
    if not callable(metric) or takes_one(metric):
        raise ValueError(
            "per_example=True is for a function of predictions and references, but this is "
            f"{getattr(metric, '__name__', type(metric).__name__)}, which takes neither."
        )
    return PerExampleMetric(CallableMetric(metric, **options))


def metric_of(signature: str | None) -> Metric | None:
    """The metric that a signature describes, or None if that is not known here, or not the same any more."""
    name, *options = (signature or "").split("|")
    known = _known().get(name)
    if known is None:
        return None
    given = {key: _value(value) for key, _, value in (option.partition(":") for option in options)}
    try:
        metric = known(**{key: value for key, value in given.items() if _takes(known, {key: value})})
        return metric if metric.signature == signature else None
    except (ImportError, TypeError, ValueError):
        return None


def direction_by_name(name: str) -> bool | None:
    """Whether more of a metric is better: of one that is known by the name, or by a word in it; None if neither."""
    known = _known().get(name)
    return direction_of(name) if known is None else known.higher_is_better


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two of what is nested too deeply
        return text.replace(BAR, "|")


def _by_name(name: str, config_name: str | None, options: dict[str, Any]) -> Metric:
    known = _known()
    if name not in known:
        averaged = _with_average(name, known)
        if averaged:
            raise ValueError(f"Unknown metric {name!r}: it is metric={averaged}, or a key of compute_metrics.")
        near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)
        choice = f"the nearest are {', '.join(near)}" if near else f"known by name are {', '.join(sorted(known))}"
        raise ValueError(
            f"Unknown metric {name!r}: {choice}. Any other one can be "
            "passed as evaluate.load(...), as a function of (predictions, references) that returns a number, or, in a "
            "trainer, as the key of compute_metrics."
        )
    of_several = _takes(known[name], {"key": ""})  # which passes options on to the one that is meant
    if not (of_several or _takes(known[name], options)):
        takes = ", ".join(inspect.signature(known[name]).parameters) or "no options"
        raise ValueError(f"The metric {name!r} takes {takes}, but got {', '.join(sorted(options))}.")
    return known[name].named(config_name, **options)


def _with_average(name: str, known: dict[str, type[Metric]]) -> str:
    """How a metric is called here that others call macro_f1 or f1_weighted; empty if it is none of these."""
    words = re.split(r"[\W_]+", name.lower())
    average = next((word for word in words if word in ("macro", "micro", "weighted")), None)
    rest = "_".join(word for word in words if word != average)
    takes = average is not None and rest in known and _takes(known[rest], {"average": average})
    return f"load_metric({rest!r}, average={average!r})" if takes else ""


def _known() -> dict[str, type[Metric]]:
    """The metrics of this package, and all others that are defined by now, that have a name of their own."""
    _import_families()

    def below(kind: type[Any]) -> list[type[Metric]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return {kind.name: kind for kind in below(Metric) if isinstance(vars(kind).get("name"), str)}


@functools.cache
def _import_families() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "evaluation":  # which imports evaluate
            importlib.import_module(f"{__package__}.{module.name}")


def _of_module(module: Any, options: dict[str, Any]) -> Metric:
    """The metric here that a module of `evaluate` computes, if it is one from there, or else an adapter."""
    place = type(module).__module__.split(".")
    names = {_plain(module.name)} | ({_plain(place[-1])} if place[0] == "evaluate_modules" else set())
    same = [kind for kind in _known().values() if _plain(kind.evaluate_module) in names]
    if same and not is_official(module):
        logger.warning(
            f"The module {module.name!r} from {place_of(module)} is called as it is, for it is not known to be "
            f"evaluate's; the metric of this package is load_metric({same[0].name!r})."
        )
        same = []
    if same and _takes(same[0], {"key": ""}):
        return _of_task(same[0], module, options)
    if "key" in options:
        same = [kind for kind in same if kind.evaluate_key == options["key"]]
    elif len(same) > 1:
        keys = sorted(kind.evaluate_key for kind in same)
        same = [kind for kind in same if _plain(kind.name) == _plain(module.name)]
        if not same:
            raise ValueError(f"{module.name!r} gives several scores: pass key= one of {', '.join(keys)}.")
    if not same:
        return EvaluateMetric(module, **options)
    (kind,) = same
    found = _same_metric(kind, module, options)
    if found is not None:
        logger.info(f"evaluate's module {module.name!r} is computed by this package: {found.signature}.")
        return found
    direction = options.get("higher_is_better", kind.higher_is_better)
    return EvaluateMetric(module, **{"key": kind.evaluate_key, "higher_is_better": direction} | options)


def _same_metric(kind: type[Metric], module: Any, options: dict[str, Any]) -> Metric | None:
    """The metric of a class with a module's options; None if these are not known here, or not all of their values."""
    own = {name: value for name, value in options.items() if name not in ("key", "higher_is_better")}
    multilabel = getattr(module, "config_name", None) == "multilabel"
    if multilabel and _takes(kind, {"threshold": 0.5}):
        own.setdefault("threshold", 0.5)
    elsewise = multilabel and "threshold" not in own and kind.name != "roc_auc"
    direction = options.get("higher_is_better", kind.higher_is_better)
    if elsewise or not _takes(kind, own) or direction != kind.higher_is_better:
        return None
    if own.get("average") == "samples" and "threshold" not in own:
        return None
    try:
        return kind(**own)
    except (TypeError, ValueError):  # of a value that is not known here, such as average=None
        return None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()  # of a class ChrF, evaluate makes chr_f


def _of_task(kind: type[Metric], module: Any, options: dict[str, Any]) -> Metric:
    """The metric of a benchmark's task that a module of `evaluate` computes, or an adapter for a key of its own."""
    try:
        if options.keys() <= {"key"}:
            return kind.named(**({"task": module.config_name} if _takes(kind, {"task": ""}) else {}), **options)
    except ValueError:
        if "key" not in options:
            raise
    return EvaluateMetric(module, **options)


def _takes(kind: type[Metric], options: dict[str, Any]) -> bool:
    return options.keys() <= inspect.signature(kind).parameters.keys()


def _is_evaluate_module(metric: Any) -> bool:
    """Whether it is an `evaluate.EvaluationModule`, without the seconds that importing evaluate takes."""
    bases = ((base.__module__.split(".")[0], base.__name__) for base in type(metric).__mro__)
    return ("evaluate", "EvaluationModule") in bases
