"""Names of evaluate that stand for one metric of several, by the task of a benchmark and the key of the score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Metric
from .loading import load_metric

Scores = dict[str, tuple[str, dict[str, Any]]]
"""What a module returns: of each key, the name of the metric and its options."""

ACCURACY: Scores = {"accuracy": ("accuracy", {})}
MATTHEWS: Scores = {"matthews_correlation": ("matthews_correlation", {})}
ACCURACY_AND_F1: Scores = ACCURACY | {"f1": ("f1", {})}
ACCURACY_AND_MACRO_F1: Scores = ACCURACY | {"f1": ("f1", {"average": "macro"})}
ERROR_RATES: Scores = {"wer": ("wer", {}), "cer": ("cer", {})}


@dataclass(frozen=True)
class SeveralScores(Metric):
    """A name for several metrics, of which `load_metric` gives the one that is meant, with any options of that.

    Args:
        key: of the score, as in what evaluate's module of the name returns; not needed where it is the only one.
    """

    scores: ClassVar[Scores] = {}
    key: str | None = None

    @classmethod
    def named(cls, config_name: str | None = None, **options: Any) -> Metric:
        """The metric that is meant.

        Raises:
            ValueError: without a key where there are several, or for a key that there is not; names those there are.
        """
        if config_name is not None:
            raise ValueError(f"{cls.name} has no tasks, but got {config_name!r}: leave it out.")
        return cls._chosen(cls.scores, cls.name, **options)

    @classmethod
    def _chosen(cls, scores: Scores, of: str, key: str | None = None, **options: Any) -> Metric:
        key = next(iter(scores)) if key is None and len(scores) == 1 else key
        if key is None or key not in scores:
            given = "" if key is None else f", but got {key!r}"
            raise ValueError(f"{of} gives {' and '.join(scores)}: pass key= one of these{given}.")
        name, usual = scores[key]
        return load_metric(name, **usual | options)


@dataclass(frozen=True)
class ByTask(SeveralScores):
    """The metrics of the tasks of a benchmark: `load_metric("glue", "cola")`, or with `task="cola"`.

    Args:
        task: of the benchmark.
        key: as of `SeveralScores`.
    """

    tasks: ClassVar[Mapping[str, Scores]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Tasks without a metric here, and why."""
    task: str = ""

    @classmethod
    def named(cls, config_name: str | None = None, **options: Any) -> Metric:
        """The metric of a task; raises ValueError for a task that there is not, or as of `SeveralScores`."""
        task = options.pop("task", "") or config_name or ""
        if task in cls.elsewhere:
            raise ValueError(f"{cls.name}: {task} {cls.elsewhere[task]}")
        if task not in cls.tasks:
            given = repr(task) if task else "none"
            raise ValueError(
                f"{cls.name} is scored by task, of which it got {given}: pass load_metric({cls.name!r}, task=...), one "
                f"of {', '.join(cls.tasks)}."
            )
        return cls._chosen(cls.tasks[task], f"{cls.name}, {task},", **options)


@dataclass(frozen=True)
class Glue(ByTask):
    """GLUE (Wang et al. 2019, arXiv:1804.07461), as evaluate's `glue`. Options as of `ByTask`."""

    name: ClassVar[str] = "glue"
    tasks: ClassVar[Mapping[str, Scores]] = {
        **dict.fromkeys(("sst2", "mnli", "mnli_mismatched", "mnli_matched", "qnli", "rte", "wnli", "hans"), ACCURACY),
        **dict.fromkeys(("mrpc", "qqp"), ACCURACY_AND_F1),
        "cola": MATTHEWS,
        "stsb": {"pearson": ("pearsonr", {}), "spearmanr": ("spearmanr", {})},
    }


@dataclass(frozen=True)
class SuperGlue(ByTask):
    """SuperGLUE (Wang et al. 2019, arXiv:1905.00537), as evaluate's `super_glue`. Options as of `ByTask`."""

    name: ClassVar[str] = "super_glue"
    tasks: ClassVar[Mapping[str, Scores]] = {
        **dict.fromkeys(("boolq", "copa", "rte", "wic", "wsc", "wsc.fixed", "axg"), ACCURACY),
        "cb": ACCURACY_AND_MACRO_F1,
        "axb": MATTHEWS,
    }
    elsewhere: ClassVar[Mapping[str, str]] = {
        "multirc": "is scored by question, with the number of each: its f1_a is that of load_metric('f1'), for its "
        "other scores pass evaluate.load('super_glue', 'multirc'), key='f1_m' or 'exact_match'.",
        "record": "is scored as SQuAD is, from 0 to 1 in place of 0 to 100: load_metric('squad_f1') or "
        "load_metric('squad_exact_match').",
    }


@dataclass(frozen=True)
class IndicGlue(ByTask):
    """IndicGLUE (Kakwani et al. 2020), as evaluate's `indic_glue`. Options as of `ByTask`."""

    name: ClassVar[str] = "indic_glue"
    tasks: ClassVar[Mapping[str, Scores]] = {
        **dict.fromkeys(
            ("wnli", "copa", "sna", "csqa", "wstp", "inltkh", "bbca", "iitp-mr", "iitp-pr", "actsa-sc", "md"), ACCURACY
        ),
        "wiki-ner": ACCURACY_AND_F1,
    }
    elsewhere: ClassVar[Mapping[str, str]] = {
        "cvit-mkb-clsr": "compares vectors of sentences: pass evaluate.load('indic_glue', 'cvit-mkb-clsr')."
    }


@dataclass(frozen=True)
class XtremeS(ByTask):
    """XTREME-S (Conneau et al. 2022, arXiv:2203.10752), as evaluate's `xtreme_s`. Options as of `ByTask`."""

    name: ClassVar[str] = "xtreme_s"
    tasks: ClassVar[Mapping[str, Scores]] = {
        **dict.fromkeys(("fleurs-asr", "mls", "voxpopuli", "babel"), ERROR_RATES),
        "covost2": {"bleu": ("sacrebleu", {})},
        "fleurs-lang_id": ACCURACY,
        "minds14": ACCURACY_AND_MACRO_F1,
    }


@dataclass(frozen=True)
class Xnli(SeveralScores):
    """XNLI (Conneau et al. 2018, arXiv:1809.05053), as evaluate's `xnli`: accuracy."""

    name: ClassVar[str] = "xnli"
    scores: ClassVar[Scores] = ACCURACY


@dataclass(frozen=True)
class RougeScores(SeveralScores):
    """What evaluate's `rouge` gives: `load_metric("rouge", key="rougeL")` is `rougeL`."""

    name: ClassVar[str] = "rouge"
    evaluate_module: ClassVar[str] = ""  # which is that of its scores
    scores: ClassVar[Scores] = {name: (name, {}) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


@dataclass(frozen=True)
class SquadScores(SeveralScores):
    """What evaluate's `squad` gives: `load_metric("squad", key="f1")` is `squad_f1`."""

    name: ClassVar[str] = "squad"
    evaluate_module: ClassVar[str] = ""  # which is that of its scores
    scores: ClassVar[Scores] = {"exact_match": ("squad_exact_match", {}), "f1": ("squad_f1", {})}


@dataclass(frozen=True)
class SquadV2Scores(SeveralScores):
    """What evaluate's `squad_v2` gives: `load_metric("squad_v2", key="f1")` is `squad_v2_f1`."""

    name: ClassVar[str] = "squad_v2"
    evaluate_module: ClassVar[str] = ""  # which is that of its scores
    scores: ClassVar[Scores] = {"exact": ("squad_v2_exact", {}), "f1": ("squad_v2_f1", {})}
