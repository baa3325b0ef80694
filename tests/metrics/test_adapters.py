import datasets
import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, mean_absolute_error, precision_score, roc_auc_score

from hf_reloss.metrics import ComputeMetrics, load_metric


class MacroF1(evaluate.Metric):
    """A module of evaluate, made as those on the Hub are."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="F1", citation="", features=features)

    def _compute(self, predictions, references, average="macro"):
        return {"f1": f1_score(references, predictions, average=average, zero_division=0)}


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    labels[::7] = -100
    return logits, labels, torch.randint(50, (8, 12), generator=generator)


def expected_f1(logits, labels, index, average="macro"):
    scores = []
    for rows in index:
        counts = labels[rows] != -100
        predictions = logits[rows][counts].argmax(-1)
        scores.append(f1_score(labels[rows][counts], predictions, average=average, zero_division=0))
    return scores


def test_a_module_of_evaluate_is_a_metric(drawn):
    logits, labels, index = drawn
    metric = load_metric(MacroF1(keep_in_memory=True), key="f1", average="micro")
    scores = metric.score_groups(metric.decide(logits), labels, index)
    assert scores.tolist() == pytest.approx(expected_f1(logits, labels, index, "micro"), abs=1e-12)
    assert "average:micro" in metric.signature


class Glue(evaluate.Metric):
    """A module with a name that none of its scores has, as glue's; of its configurations one has two scores."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="GLUE", citation="", features=features)

    def _compute(self, predictions, references):
        accuracy = float(np.mean(np.array(predictions) == references))
        f1 = {"f1": f1_score(references, predictions)} if self.config_name == "mrpc" else {}
        return {"accuracy": accuracy} | f1


def test_of_a_module_the_only_score_is_taken_and_of_several_the_one_that_is_asked_for():
    predictions, references = [0, 1, 1, 1], [0, 1, 0, 1]
    assert load_metric(Glue("sst2", keep_in_memory=True)).compute(predictions, references) == 0.75
    both = Glue("mrpc", keep_in_memory=True)
    assert load_metric(both, key="f1").compute(predictions, references) == pytest.approx(0.8)
    with pytest.raises(KeyError, match=r"gave \['accuracy', 'f1'\].*pass key= one of these"):
        load_metric(both).compute(predictions, references)


def test_compute_metrics_of_a_trainer_is_a_metric(drawn):
    logits, labels, index = drawn

    def compute_metrics(evaluation):
        predictions = evaluation.predictions.argmax(-1)
        return {"eval_f1": f1_score(evaluation.label_ids, predictions, average="macro", zero_division=0), "other": 1}

    metric = ComputeMetrics(compute_metrics, "f1")
    scores = metric.score_groups(metric.decide(logits), labels, index)
    assert scores.tolist() == pytest.approx(expected_f1(logits, labels, index), abs=1e-12)
    with pytest.raises(KeyError, match="without 'bleu'"):
        ComputeMetrics(compute_metrics, "bleu").compute(logits, labels)


def test_compute_metrics_sees_what_preprocess_logits_for_metrics_gives(drawn):
    logits, labels, index = drawn
    metric = ComputeMetrics(
        lambda evaluation: {"f1": f1_score(evaluation.label_ids, evaluation.predictions, average="macro")},
        "f1",
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    scores = metric.score_groups(metric.decide(logits), labels, index)
    assert scores.tolist() == pytest.approx(expected_f1(logits, labels, index), abs=1e-12)


def test_any_function_is_a_metric():
    metric = load_metric(lambda predictions, references: {"error": np.mean(predictions != references)}, name="error")
    assert metric.compute([1, 2, 3, 3], [1, 2, 3, 4]) == pytest.approx(0.25)
    assert load_metric(metric) is metric
    with pytest.raises(ValueError, match="a metric already, so key"):
        load_metric(metric, key="error")


def test_functions_get_class_indices_unless_they_want_logits():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert load_metric(lambda predictions, references: predictions.sum()).compute(logits, [0, 0]) == 1
    raw = load_metric(lambda predictions, references: predictions.sum(), class_indices=False)
    assert raw.compute(logits, [0, 0]) == 6


def test_outputs_in_a_tuple_are_handed_over_in_a_tuple(drawn):
    logits, labels, index = drawn
    metric = ComputeMetrics(
        lambda evaluation: {"f1": f1_score(evaluation.label_ids, evaluation.predictions, average="macro")},
        "f1",
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0].argmax(-1),
        in_tuple=True,
    )
    scores = metric.score_groups(metric.decide(logits), labels, index)
    assert scores.tolist() == pytest.approx(expected_f1(logits, labels, index), abs=1e-12)


def test_functions_that_take_the_truth_first_get_it_first():
    metric = load_metric(precision_score)
    assert metric.compute([0, 1, 1, 1], [0, 1, 0, 0]) == pytest.approx(1 / 3)
    assert load_metric(mean_absolute_error).compute([0.1, 0.2], [0.1, 0.3]) == pytest.approx(0.05)


def test_only_metrics_with_a_name_are_checked_against_modules():
    with pytest.raises(ValueError, match="no module to compare"):
        load_metric(precision_score).check_against(None, [0], [0])


@pytest.mark.parametrize(
    "first",
    ["y_true", "labels", "targets", "y", "gold", "truth", "ground_truth", "actual", "reference", "refs", "label", "gt"],
)
def test_the_truth_comes_first_where_a_function_says_so(first):
    names = {"score": precision_score}
    exec(f"def f({first}, other): return score({first}, other)", names)
    predictions, references = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 0])
    expected = precision_score(references, predictions)
    assert load_metric(names["f"]).compute(predictions, references) == pytest.approx(expected)


def test_of_two_arguments_that_are_both_called_so_neither_is_moved():
    def f(answers, references):
        return precision_score(references, answers)

    predictions, references = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 0])
    assert load_metric(f).compute(predictions, references) == pytest.approx(precision_score(references, predictions))


def test_functions_of_libraries_are_called_the_right_way_round():
    jiwer = pytest.importorskip("jiwer")
    predictions, references = ["a b c d e f"], ["a b"]
    assert load_metric(jiwer.wer).compute(predictions, references) == jiwer.wer(references, predictions)
    assert not load_metric(jiwer.wer).higher_is_better


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, False) for name in ("mse", "mean_absolute_error", "smape", "mase", "brier_score", "perplexity")),
        *((name, False) for name in ("charcut_mt", "WordErrorRate", "eval_loss", "business_cost", "error")),
        *((name, True) for name in ("f1", "neg_mean_squared_error", "accuracy", "closeness", "terms")),
        *((name, True) for name in ("cost_saving", "error_reduction", "cost_aware_f1", "ErrorCorrectionAccuracy")),
    ],
)
def test_of_errors_and_costs_less_is_better_by_their_names(name, more):
    def function(predictions, references):
        return 0.0

    function.__name__ = name
    assert load_metric(function).higher_is_better is more
    assert load_metric(function, higher_is_better=not more).higher_is_better is not more
    assert load_metric(lambda predictions, references: {name: 0.0}, key=name).higher_is_better is more


def test_what_a_module_says_of_its_direction_counts_more_than_its_name():
    class Error:  # as a module of torchmetrics
        higher_is_better = True

        def __call__(self, predictions, references):
            return 0.0

    assert load_metric(Error()).higher_is_better
    Error.higher_is_better = None
    assert not load_metric(Error()).higher_is_better


def test_functions_of_scores_get_probabilities():
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    metric = load_metric(roc_auc_score, multi_class="ovr")
    expected = roc_auc_score(labels.numpy(), logits.softmax(-1).numpy(), multi_class="ovr")
    assert metric.compute(logits, labels) == pytest.approx(expected, abs=1e-6)
    two = labels.clamp(max=1)
    expected = roc_auc_score(two.numpy(), (logits[:, 1] - logits[:, 0]).numpy())
    assert load_metric(roc_auc_score).compute(logits[:, :2], two) == pytest.approx(expected, abs=1e-6)
    with_logits = load_metric(roc_auc_score, class_indices=False)
    assert with_logits.decide(logits) is logits


def test_functions_of_one_output_get_it_as_it_is():
    values, references = torch.randn(20, 1), torch.randn(20)
    found = load_metric(mean_absolute_error).compute(values, references)
    assert found == pytest.approx(mean_absolute_error(references.numpy(), values[:, 0].numpy()), rel=1e-6)
