import evaluate
import numpy as np
import pytest
import torch

from hf_reloss.metrics import as_evaluate, load_metric


def test_a_metric_serves_as_a_module_of_evaluate():
    module = as_evaluate("f1", average="macro")
    assert isinstance(module, evaluate.Metric)
    assert module.name == "f1"
    assert module.compute(predictions=[0, 1, 1, 2], references=[0, 1, 0, 2]) == {"f1": pytest.approx(7 / 9)}
    assert module.compute(predictions=[0, 1, 1, 2], references=[0, 1, 0, 2], average="micro") == {"f1": 0.75}


def test_batches_add_up():
    logits, references = torch.randn(20, 3), torch.randint(3, (20,))
    module = as_evaluate("matthews_correlation")
    for start in range(0, 20, 8):
        module.add_batch(predictions=logits[start : start + 8], references=references[start : start + 8])
    expected = load_metric("matthews_correlation").compute(logits, references)
    assert module.compute() == {"matthews_correlation": pytest.approx(expected)}
    module.add(prediction=1, reference=1)
    module.add(prediction=0, reference=1)
    assert module.compute() == {"matthews_correlation": 0.0}


def test_one_at_a_time_goes_by_the_words_of_evaluate():
    both = evaluate.combine([as_evaluate("accuracy"), as_evaluate("f1")])
    for prediction, reference in zip([1, 0, 1], [1, 1, 1], strict=True):
        both.add(prediction=prediction, reference=reference)
    assert both.compute() == {"accuracy": pytest.approx(2 / 3), "f1": 0.8}
    module = as_evaluate("accuracy")
    module.add(predictions=1, references=1)
    assert module.compute() == {"accuracy": 1.0}


def test_scores_and_numbers_are_as_in_evaluate():
    scores = {"prediction_scores": [0.1, 0.9, 0.8], "references": [0, 1, 0]}
    assert as_evaluate("roc_auc").compute(**scores) == {"roc_auc": 1.0}
    module = as_evaluate("roc_auc")
    module.add_batch(**scores)
    assert module.compute() == {"roc_auc": 1.0}
    for name, rate in (("wer", 0.5), ("cer", 1 / 3)):
        assert as_evaluate(name).compute(predictions=["a b"], references=["a c"]) == pytest.approx(rate)
        assert not load_metric(as_evaluate(name)).higher_is_better
    assert load_metric(as_evaluate("f1", average="macro")) == load_metric("f1", average="macro")


def test_modules_are_combined():
    combined = evaluate.combine([as_evaluate("accuracy"), as_evaluate("f1", average="macro")])
    scores = combined.compute(predictions=[0, 1, 1, 2], references=[0, 1, 0, 2])
    assert scores == {"accuracy": 0.75, "f1": pytest.approx(7 / 9)}


def test_texts_with_one_or_several_references_and_spans_are_read():
    assert as_evaluate("exact_match").compute(predictions=["a", "b"], references=["a", "c"]) == {"exact_match": 0.5}
    bleu = as_evaluate("sacrebleu")
    predictions, references = ["the cat sat on the mat"], [["a cat sat on the mat", "the cat sat on a mat"]]
    expected = load_metric("sacrebleu").compute(predictions, references)
    assert bleu.compute(predictions=predictions, references=references) == {"score": pytest.approx(expected)}
    squad = as_evaluate("squad_v2_f1")
    answers = [{"id": "1", "answers": {"text": [], "answer_start": []}}]
    predicted = [{"id": "1", "prediction_text": "", "no_answer_probability": 0.0}]
    assert squad.compute(predictions=predicted, references=answers) == {"f1": 100.0}


def test_batches_may_differ_in_what_their_values_look_like():
    auc = as_evaluate("roc_auc")
    auc.add_batch(predictions=[0, 1], references=[0, 1])
    auc.add_batch(predictions=torch.tensor([0.9, 0.2, 0.6, 0.3]).bfloat16(), references=np.array([1, 0, 0, 1]))
    expected = load_metric("roc_auc").compute([0, 1, 0.9, 0.2, 0.6, 0.3], [0, 1, 1, 0, 0, 1])
    assert auc.compute() == {"roc_auc": pytest.approx(expected)}
    match = as_evaluate("exact_match")
    match.add_batch(predictions=["a"], references=["a"])
    match.add_batch(predictions=["b"], references=[["a", "b"]])
    assert match.compute() == {"exact_match": 1.0}
    oks = as_evaluate("oks", sigmas=[0.1, 0.1])
    points = np.array([[[1.0, 2, 2], [3, 4, 2]]])
    oks.add_batch(predictions=points[..., :2], references={"keypoints": points, "area": np.array([4.0])})
    assert oks.compute() == {"oks": 1.0}


def test_options_of_functions_are_set_where_they_are_made():
    def f1(predictions, references, value=1.0):  # not the metric of that name
        return value

    assert as_evaluate(f1, value=2.0).compute(predictions=[0], references=[0]) == {"f1": 2.0}
    with pytest.raises(ValueError, match="takes its options where it is made"):
        as_evaluate(f1).compute(predictions=[0], references=[0], value=3.0)


def test_several_processes_share_their_predictions(tmp_path):
    """As in a distributed run, where each process holds a part and the first one computes."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_part, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for process in processes:
        process.start()
    scores = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(scores, key=str) == [None, {"accuracy": 0.75}]


def _part(rank: int, folder: str, results) -> None:
    module = as_evaluate("accuracy", num_process=2, process_id=rank, experiment_id="parts", cache_dir=folder)
    module.add_batch(predictions=[0, rank], references=[0, 1])
    results.put(module.compute())


@pytest.mark.parametrize("mode", [None, "strict"])
def test_seqeval_gives_the_scores_of_each_type(mode):
    reports = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import IOB2

    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"], ["O", "B-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["B-ORG", "O"], ["B-LOC", "I-LOC"]]
    options = {} if mode is None else {"mode": mode, "scheme": "IOB2"}
    found = as_evaluate("seqeval", **options).compute(predictions=predictions, references=references)
    expected = reports.classification_report(
        references, predictions, output_dict=True, zero_division=0, **options | ({"scheme": IOB2} if mode else {})
    )
    for name in ("PER", "LOC", "ORG"):
        scores = {key.replace("f1-score", "f1"): value for key, value in expected[name].items() if key != "support"}
        assert found[name] == pytest.approx(scores | {"number": expected[name]["support"]})
    overall = {f"overall_{key}": expected["micro avg"][key] for key in ("precision", "recall")}
    overall |= {"overall_f1": expected["micro avg"]["f1-score"]}
    overall |= {"overall_accuracy": reports.accuracy_score(references, predictions)}
    assert {key: value for key, value in found.items() if key.startswith("overall_")} == pytest.approx(overall)
    assert set(found) == {"PER", "LOC", "ORG", *overall}


def test_mean_iou_gives_the_scores_of_each_class():
    references = np.array([[[0, 1], [2, 255]]])
    predictions = np.array([[[0, 2], [2, 1]]])
    found = as_evaluate("mean_iou", num_labels=4).compute(predictions=predictions, references=references)
    assert found["per_category_iou"] == pytest.approx([1, 0, 0.5, np.nan], nan_ok=True)
    assert found["per_category_accuracy"] == pytest.approx([1, 0, 1, np.nan], nan_ok=True)
    means = {"mean_iou": 0.5, "mean_accuracy": 2 / 3, "overall_accuracy": 2 / 3}
    assert {key: found[key] for key in means} == pytest.approx(means)
    assert found["mean_iou"] == load_metric("mean_iou", num_labels=4).compute(predictions, references)


def test_modules_of_several_scores_give_all_of_them():
    predictions, references = ["the cat sat", "a dog"], ["the cat sat down", "the dog"]
    rouge = as_evaluate("rouge", use_stemmer=True, keep_in_memory=True, seed=3)
    found = rouge.compute(predictions=predictions, references=references)
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    assert found == {name: load_metric(name, use_stemmer=True).compute(predictions, references) for name in names}
    assert load_metric(rouge, key="rougeL") == load_metric("rougeL", use_stemmer=True)
    with pytest.raises(ValueError, match="key= one of rouge1, rouge2, rougeL, rougeLsum"):
        load_metric(rouge)
    answers = [{"id": "1", "answers": {"text": ["a b"], "answer_start": [0]}}]
    predicted = [{"id": "1", "prediction_text": "b"}]
    found = as_evaluate("squad").compute(predictions=predicted, references=answers)
    assert found == {"exact_match": 100.0, "f1": 100.0}  # articles do not count


def test_what_is_missing_is_said():
    module = as_evaluate("accuracy")
    with pytest.raises(ValueError, match="accuracy has nothing to score"):
        module.compute()
    with pytest.raises(ValueError, match="but got predictions"):
        module.add_batch(predictions=[1])
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        module.compute(predictions=[1, 0], references=[1])
    labels = np.array([1, 0])
    module.add_batch(predictions=labels, references=labels.copy())
    labels[:] = 0  # a batch is copied
    assert module.compute() == {"accuracy": 1.0}
