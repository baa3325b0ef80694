import textwrap

import evaluate
import numpy as np
import pytest
import torch

from hf_reloss.metrics import CallableMetric, EvaluateMetric, Metric, load_metric, metric_of
from hf_reloss.metrics.classification import Accuracy
from hf_reloss.metrics.counts import F1

F1_MODULE = """
import datasets
import evaluate
from sklearn.metrics import f1_score

class F1(evaluate.Metric):
    def _info(self):
        features = datasets.Features(predictions=datasets.Value("int32"), references=datasets.Value("int32"))
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, labels=None, pos_label=1, average="binary", sample_weight=None):
        score = f1_score(references, predictions, labels=labels, pos_label=pos_label, average=average,
                         sample_weight=sample_weight)
        return {"f1": float(score)}
"""


@pytest.fixture
def load_module(tmp_path):
    """Modules as `evaluate.load` gives them, from the Hub or from a folder."""

    def load(name: str, source: str, published: bool = True) -> evaluate.EvaluationModule:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{name}.py").write_text(textwrap.dedent(source))
        module = evaluate.load(str(tmp_path / name), keep_in_memory=True)
        if published:  # as what is loaded from there is called
            type(module).__module__ = f"evaluate_modules.metrics.evaluate-metric--{name}.0123.{name}"
        return module

    return load


def test_a_module_of_evaluate_that_is_known_by_name_gets_the_fast_path(load_module):
    metric = load_metric(load_module("f1", F1_MODULE), average="macro")
    assert isinstance(metric, F1)
    assert metric.average == "macro"


def test_a_module_with_options_that_are_only_its_own_is_called(load_module):
    metric = load_metric(load_module("f1", F1_MODULE), average="macro", sample_weight=[1.0, 2.0, 1.0])
    assert isinstance(metric, EvaluateMetric)
    assert metric.compute([0, 1, 1], [0, 1, 0]) == pytest.approx(11 / 15)


def test_the_direction_of_a_module_is_known_also_where_its_options_are_not(load_module):
    source = """
        import datasets
        import evaluate

        class WER(evaluate.Metric):
            def _info(self):
                features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
                return evaluate.MetricInfo(description="", citation="", features=features)

            def _compute(self, predictions, references, concatenate_texts=False):
                return 0.25
    """
    known, called = (
        load_metric(load_module("wer", source)),
        load_metric(load_module("wer", source), concatenate_texts=True),
    )
    assert (known.higher_is_better, called.higher_is_better) == (False, False)
    assert isinstance(called, EvaluateMetric)
    assert called.compute(["a"], ["b"]) == 0.25
    assert not isinstance(load_metric(load_module("wer", source), higher_is_better=False), EvaluateMetric)


def test_a_module_for_several_labels_gets_the_metric_of_several_labels(load_module):
    module = load_module("f1", F1_MODULE)
    module.config_name = "multilabel"
    predictions, references = [[1, 0, 1], [0, 1, 1]], [[1, 0, 0], [0, 1, 1]]
    assert load_metric(module, average="macro").compute(predictions, references) == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_ones_own_class_of_a_known_name_is_called():
    namespace = {"__name__": "mine"}
    exec(F1_MODULE.replace('"f1": float(score)', '"f1": 1 - float(score)'), namespace)
    metric = load_metric(namespace["F1"](keep_in_memory=True), average="micro")
    assert isinstance(metric, EvaluateMetric)
    assert metric.compute([0, 1, 1, 1], [0, 1, 0, 1]) == pytest.approx(0.25)


ACCURACY_MODULE = '''
import datasets
from sklearn.metrics import accuracy_score

import evaluate


_DESCRIPTION = """Share."""
_KWARGS_DESCRIPTION = """None."""
_CITATION = """"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features(predictions=datasets.Value("int32"), references=datasets.Value("int32"))
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, normalize=True, sample_weight=None):
        return {
            "accuracy": float(accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight))
        }
'''


def test_ones_own_module_in_a_folder_of_a_known_name_is_called_and_the_log_says_so(load_module, caplog):
    as_published = load_metric(load_module("accuracy", ACCURACY_MODULE, published=False))
    assert isinstance(as_published, Accuracy)
    assert not caplog.text
    changed = ACCURACY_MODULE.replace("float(accuracy_score(", "2 * float(accuracy_score(")
    metric = load_metric(load_module("accuracy", changed, published=False))
    assert metric.compute([0, 1, 1, 1], [0, 1, 0, 1]) == 1.5
    assert "is called as it is" in caplog.text
    assert isinstance(load_metric(load_module("accuracy", changed)), Accuracy)  # of evaluate's own owner


@pytest.mark.parametrize("options", [{"average": None}, {"average": "samples"}, {"average": "mine"}])
def test_a_module_with_a_value_that_is_not_known_here_is_called(load_module, options):
    metric = load_metric(load_module("f1", F1_MODULE.replace("float(score)", "score")), **options)
    assert isinstance(metric, EvaluateMetric)
    if options["average"] is None:  # a score for each class
        assert metric.compute([0, 1, 1, 2], [0, 1, 0, 2]) == pytest.approx(7 / 9)


def test_a_module_of_negative_classes_is_called(load_module):
    metric = load_metric(load_module("f1", F1_MODULE), pos_label=-1)
    assert metric.compute([-1, 1, 1], [-1, 1, -1]) == pytest.approx(2 / 3)
    for options in ({"pos_label": -1}, {"labels": [-1], "average": "macro"}):
        with pytest.raises(ValueError, match="class indices, 0 or more, but got -1"):
            load_metric("f1", **options)


def test_labels_may_be_an_array():
    metric = load_metric("f1", average="macro", labels=np.array([0, 2]))
    assert metric == load_metric("f1", average="macro", labels=[0, 2])
    assert metric_of(metric.signature) == metric
    assert metric.compute([0, 1, 2, 2], [0, 1, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("regexes", [["a|b"], [r"\|", "x"], ["|"]])
def test_a_signature_may_hold_what_parts_it(regexes):
    metric = load_metric("exact_match", regexes_to_ignore=regexes)
    assert metric_of(metric.signature) == metric


def test_a_module_of_several_scores_is_known_by_the_key(load_module):
    rouge = """
        import datasets
        import evaluate

        class Rouge(evaluate.Metric):
            def _info(self):
                features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
                return evaluate.MetricInfo(description="", citation="", features=features)
    """
    module = load_module("rouge", rouge)
    assert load_metric(module, key="rougeL", use_stemmer=True).signature.startswith("rougeL|use_stemmer:True")
    with pytest.raises(ValueError, match="key= one of rouge1, rouge2, rougeL, rougeLsum"):
        load_metric(module)


def test_a_metric_is_checked_against_its_module(load_module):
    module = load_module("f1", F1_MODULE)
    predictions, references = torch.randint(4, (50,)), torch.randint(4, (50,))
    for options in ({"average": "macro"}, {"average": "weighted", "labels": [0, 2]}):
        assert load_metric("f1", **options).check_against(module, predictions, references) == pytest.approx(
            0, abs=1e-12
        )
    altered = load_module("f1", F1_MODULE.replace("float(score)", "float(score) / 2"))
    assert load_metric("f1", average="micro").check_against(altered, [0, 1], [0, 1]) == pytest.approx(0.5)


def test_an_unknown_name_lists_the_near_ones_and_how_to_pass_a_function():
    with pytest.raises(ValueError, match=r"nearest are accuracy.*as a function of"):
        load_metric("acuracy")
    with pytest.raises(ValueError, match=r"rouge1|rougeL"):
        load_metric("rouge")
    with pytest.raises(ValueError, match=r"f1, .*sacrebleu"):  # nothing is near, so all are listed
        load_metric("zzzz")


@pytest.mark.parametrize("name", ["macro_f1", "f1_macro", "F1-macro"])
def test_a_name_with_an_average_says_how_it_is_asked_for(name):
    with pytest.raises(ValueError, match=r"it is metric=load_metric\('f1', average='macro'\)"):
        load_metric(name)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'f1' takes labels, pos_label, average, zero_division, threshold, but got avg"
    ):
        load_metric("f1", avg="macro")
    with pytest.raises(ValueError, match="'accuracy' takes no options"):
        load_metric("accuracy", average="macro")


def test_what_is_no_metric_is_refused():
    with pytest.raises(ValueError, match="is int"):
        load_metric(3)
    metric = load_metric("accuracy")
    assert load_metric(metric) is metric
    with pytest.raises(ValueError, match="a metric already, so k cannot be set"):
        load_metric(metric, k=1)


def test_functions_of_texts_get_lists():
    metric = load_metric(lambda predictions, references: sum(map(str.__eq__, predictions, references)), name="same")
    assert isinstance(metric, CallableMetric)
    index = torch.tensor([[0, 1], [1, 2], [0, 0]])
    assert metric.score_groups(["a", "b", "c"], ["a", "x", "c"], index).tolist() == [1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        metric.compute(["a", "b"], ["a"])


def test_a_signature_fixes_the_options():
    signature = load_metric("fbeta", average="macro", beta=2.0).signature
    assert signature == "fbeta|labels:None|pos_label:1|average:macro|zero_division:0.0|threshold:None|beta:2.0"


def test_a_new_metric_is_found_by_its_name():
    class Constant(Metric):
        name = "constant_for_this_test"

        def score_groups(self, predictions, references, index):
            return torch.ones(len(index), dtype=torch.float64)

    assert load_metric("constant_for_this_test").compute([1], [1]) == 1.0


@pytest.mark.parametrize("value", ["-" * 100_000 + "1", "[" * 100_000, "0x" + "f" * 10_000])
def test_a_signature_that_cannot_be_read_is_of_no_metric(value):
    assert metric_of(f"fbeta|beta:{value}") is None
