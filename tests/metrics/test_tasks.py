"""Benchmarks of evaluate are scored by the metric of their task."""

import textwrap

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from hf_reloss import load_metric
from hf_reloss.metrics import loading
from hf_reloss.metrics.counts import F1
from hf_reloss.metrics.tasks import ByTask, SeveralScores


def accuracy(references, predictions):
    return np.mean(references == predictions)


def macro_f1(references, predictions):
    return f1_score(references, predictions, average="macro")


WANTED = [
    ("glue", "sst2", None, accuracy),
    ("glue", "mnli_matched", None, accuracy),
    ("glue", "mrpc", "f1", f1_score),
    ("glue", "qqp", "accuracy", accuracy),
    ("glue", "cola", None, matthews_corrcoef),
    ("glue", "stsb", "pearson", lambda y, x: pearsonr(y, x)[0]),
    ("glue", "stsb", "spearmanr", lambda y, x: spearmanr(y, x)[0]),
    ("super_glue", "boolq", None, accuracy),
    ("super_glue", "cb", "f1", macro_f1),
    ("super_glue", "axb", None, matthews_corrcoef),
    ("indic_glue", "wiki-ner", "f1", f1_score),
    ("xtreme_s", "minds14", "f1", macro_f1),
]


@pytest.mark.parametrize(("name", "task", "key", "theirs"), WANTED)
def test_a_task_is_scored_as_evaluate_does(name, task, key, theirs):
    generator = np.random.default_rng(0)
    references, predictions = generator.integers(0, 2, (2, 60))
    options = {} if key is None else {"key": key}
    for metric in (load_metric(name, task, **options), load_metric(name, task=task, **options)):
        assert metric.compute(predictions, references) == pytest.approx(theirs(references, predictions))


def test_every_name_gives_a_metric_that_is_known():
    for kind in (*SeveralScores.__subclasses__(), *ByTask.__subclasses__()):
        for task, scores in (kind.tasks if issubclass(kind, ByTask) else {None: kind.scores}).items():
            for key, (name, options) in scores.items():
                assert load_metric(kind.name, task, key=key) == load_metric(name, **options)
    assert load_metric("xnli").name == "accuracy"
    assert not load_metric("xtreme_s", "mls", key="wer").higher_is_better
    assert load_metric("rouge", key="rougeL", use_stemmer=True) == load_metric("rougeL", use_stemmer=True)
    assert load_metric("squad", key="f1").name == "squad_f1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_metric("glue"),
            r"by task, of which it got none: pass load_metric\('glue', task=...\), one of sst2",
        ),
        (lambda: load_metric("glue", "mrcp"), "it got 'mrcp'"),
        (lambda: load_metric("glue", "mrpc"), "glue, mrpc, gives accuracy and f1: pass key= one of these"),
        (lambda: load_metric("glue", "mrpc", key="F1"), "these, but got 'F1'"),
        (lambda: load_metric("super_glue", "record"), "record is scored as SQuAD is"),
        (lambda: load_metric("super_glue", "multirc"), "multirc is scored by question"),
        (lambda: load_metric("rouge"), "rouge gives rouge1 and rouge2 and rougeL and rougeLsum"),
        (lambda: load_metric("squad_v2"), "squad_v2 gives exact and f1"),
        (lambda: load_metric("xnli", "sts-b"), "xnli has no tasks, but got 'sts-b'"),
        (lambda: load_metric("rouge", key="rougeL", k=1), "'rougeL' takes use_stemmer, tokenizer, but got k"),
        (lambda: load_metric("f1", "macro"), "f1 has no configuration 'macro'"),
        (lambda: load_metric(accuracy, "glue"), "goes with the name of a metric, but this is function"),
    ],
)
def test_what_is_not_said_is_asked_for(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_several_labels_are_a_configuration_as_in_evaluate():
    assert load_metric("f1", "multilabel", average="macro").threshold == 0.5
    assert load_metric("accuracy", "multilabel").name == "subset_accuracy"
    assert load_metric("roc_auc", "multiclass").name == "roc_auc"


def test_a_module_of_a_task_is_the_metric_of_that_task(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "is_official", lambda module: True)
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "glue.py").write_text(
        textwrap.dedent("""
        import datasets
        import evaluate

        class Glue(evaluate.Metric):
            def _info(self):
                features = datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64"))
                return evaluate.MetricInfo(description="", citation="", features=features)

            def _compute(self, predictions, references):
                return {"accuracy": 0.0, "f1": 0.0, "another": 0.25}
    """)
    )
    module = evaluate.load(str(tmp_path / "glue"), "cola", keep_in_memory=True)
    assert load_metric(module) == load_metric("matthews_correlation")
    module = evaluate.load(str(tmp_path / "glue"), "mrpc", keep_in_memory=True)
    with pytest.raises(ValueError, match="glue, mrpc, gives accuracy and f1"):
        load_metric(module)
    assert isinstance(load_metric(module, key="f1"), F1)
    assert load_metric(module, key="another").compute([0, 1], [0, 1]) == 0.25  # it is called
