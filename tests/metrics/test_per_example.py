from types import SimpleNamespace

import datasets
import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nltk.translate.meteor_score import single_meteor_score
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForTokens, load_metric
from hf_reloss.learning import time_limit
from hf_reloss.learning.learn_surrogate import learn_surrogate
from hf_reloss.metrics.adapters import AskedMetric
from hf_reloss.predictions.dataset import recorded_dataset

from ..conftest import TinyClassifier, tiny_rows

COSTS = np.array([[0.0, 1.0, 1.0, 1.0], [9.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 2.0], [4.0, 1.0, 1.0, 0.0]])


class Counted:
    """A function that remembers how many examples it was given."""

    def __init__(self, function):
        self.function, self.calls, self.examples = function, 0, 0
        self.__name__ = "business_cost"

    def __call__(self, predictions, references):
        self.calls += 1
        self.examples += len(references) if isinstance(references, list | np.ndarray) else 1
        return self.function(predictions, references)


def test_each_example_is_scored_once_however_many_groups_it_is_in():
    generator = torch.Generator().manual_seed(0)
    texts = [f"a b {place}" for place in range(600)]
    references = [f"a {place} c" for place in range(600)]
    index = torch.randint(600, (500, 32), generator=generator)

    def shared(predictions, references):
        return [len({*p.split()} & {*r.split()}) for p, r in zip(predictions, references, strict=True)]

    counted = Counted(shared)
    metric = load_metric(counted, per_example=True, higher_is_better=True)
    scores = metric.score_groups(texts, references, index)
    asked = counted.examples
    assert asked <= 600 + 40  # a few are asked twice, to find out how the function is to be called
    single = np.array(shared(texts, references))
    assert scores.numpy() == pytest.approx(single[index.numpy()].mean(1))
    assert metric.compute(texts, references) == pytest.approx(single.mean())
    assert counted.examples == asked  # by what they hold, all of them are known


def test_what_holds_the_same_is_scored_once_and_ignored_labels_do_not_count():
    counted = Counted(lambda predicted, label: COSTS[label, predicted])
    metric = load_metric(counted, per_example=True)
    labels = torch.arange(4000) % 4
    decided = torch.arange(4000) // 4 % 4
    expected = COSTS[labels.numpy(), decided.numpy()].mean()
    assert metric.compute(decided, labels) == pytest.approx(expected)
    assert counted.examples < 16 * 4
    labels[::4] = -100
    assert metric.compute(decided, labels) == pytest.approx(COSTS[1:].mean())
    assert not metric.higher_is_better  # by its name


def test_a_function_of_one_pair_gets_one_pair():
    def cost(prediction, reference):
        return 0.0 if prediction == reference else float(abs(len(prediction) - len(reference)) + 1)

    metric = load_metric(cost, per_example=True)
    assert metric.compute(["a", "bb", "c"], ["a", "b", "ccc"]) == pytest.approx((0 + 2 + 3) / 3)
    of_classes = load_metric(lambda p, r: 5.0 if p != r else 0.0, per_example=True, name="cost")
    assert of_classes.compute(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), [1, 1]) == 2.5


def test_a_function_of_several_that_gives_one_number_is_refused():
    def share(predictions, references):
        return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)

    with pytest.raises(ValueError, match="is to give each example a number, but gave 1 for 2"):
        load_metric(share, per_example=True).compute(["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="neither several at once"):
        load_metric(accuracy_score, per_example=True).compute([0, 1], [0, 1])
    with pytest.raises(ValueError, match="leave per_example out"):
        load_metric("accuracy", per_example=True)
    with pytest.raises(ValueError, match="takes neither"):
        load_metric(lambda eval_prediction: 0.0, per_example=True)


class Overlap(evaluate.Metric):
    """As METEOR is: a mean of what each example gets."""

    def _info(self):
        features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"overlap": float(np.mean([p == r for p, r in zip(predictions, references, strict=True)]))}


def test_a_module_of_evaluate_gets_lists_of_one():
    metric = load_metric(Overlap(keep_in_memory=True), per_example=True)
    assert metric.statistics(["a", "b", "c"], ["a", "b", "d"]).tolist() == [[1, 1], [1, 1], [0, 1]]


def test_options_for_each_example_go_with_it():
    def shift(predictions, references, sources):
        return [len(p) - len(s) for p, s in zip(predictions, sources, strict=True)]

    metric = load_metric(shift, per_example=True, higher_is_better=True, sources=["a", "bb", ""])
    index = torch.tensor([[0, 0], [1, 2]])
    assert metric.score_groups(["aaaa"] * 3, ["x"] * 3, index).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("per_example", [True, False])
def test_the_order_of_arguments_is_asked_where_only_one_works(per_example, caplog):
    def worth(first, second):  # which takes logits second
        return second[np.arange(len(first)), first] if per_example else second[np.arange(len(first)), first].mean()

    logits = torch.randn(20, 3, dtype=torch.float64)
    labels = torch.arange(20) % 3
    metric = load_metric(worth, per_example=per_example, class_indices=False)
    assert isinstance(getattr(metric, "of", metric), AskedMetric)
    assert metric.compute(logits, labels) == pytest.approx(logits[range(20), labels].mean().item())


def test_a_surrogate_is_learned_of_what_each_example_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(time_limit, "LEAST_SECONDS", 2.0)
    counted = Counted(lambda predicted, label: COSTS[label, predicted])
    args = ReLossTrainingArguments(
        tmp_path, max_steps=40, per_device_train_batch_size=16, surrogate_warmup=0.5, learning_rate=0.05,
        report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    metric = load_metric(counted, per_example=True)
    trainer = ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(400), metric=metric)
    trainer.train()
    surrogate = trainer.surrogate
    assert surrogate.config.metric == metric.signature
    assert surrogate.config.record["alignment"] > 0.5
    assert surrogate.config.architecture == "credit"
    expected = torch.tensor(COSTS, dtype=torch.float32)
    torch.testing.assert_close(surrogate.network.costs / surrogate.network.costs[0, 1], expected)
    assert counted.examples < 200  # 16 confusions, whatever number of predictions


def test_a_surrogate_of_tokens_is_learned_of_what_each_text_scores():
    words = ["<pad>", *"abcdefghijk"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<pad>")),
        pad_token="<pad>",
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 12, (300, 8), generator=generator)
    labels[1::2, 6:] = -100
    stage = torch.linspace(0, 1, 300)
    logits = torch.randn(300, 8, 12, generator=generator)
    logits += 4 * stage[:, None, None] * F.one_hot(labels.clamp(min=0), 12)
    empty = SimpleNamespace(synsets=lambda word: ())

    def meteor(predictions, references):
        pairs = zip(references, predictions, strict=True)
        return [single_meteor_score(r.split(), p.split(), wordnet=empty) for r, p in pairs]

    counted = Counted(meteor)
    metric = load_metric(counted, per_example=True, name="meteor", higher_is_better=True)
    columns = SurrogateForTokens.recorded({"logits": logits}, labels, {}) | {"stage": stage}
    predictions = recorded_dataset(SurrogateForTokens, columns, tokenizer=tokenizer, metric=metric)
    surrogate = SurrogateForTokens.for_metric(metric)
    assert surrogate.config.level == "sentence"  # as of the metric that has this name here
    at_start = learn_surrogate(
        surrogate, predictions, metric, seed=0, group_size=16, num_groups=64, num_eval_groups=64, num_train_epochs=3
    )
    assert counted.examples <= 300 + 40  # each text once, however many groups it is drawn into
    named = load_metric("meteor", tokenizer=str.split, synonyms=False)
    texts = predictions["teacher_forced"][:], predictions["reference"][:]
    assert metric.compute(*texts) == pytest.approx(named.compute(*texts))
    assert surrogate.config.metric == metric.signature
    assert surrogate.config.record["alignment_canonical"] >= at_start.config.record["alignment_canonical"] > 0.8
    right, wrong = (5.0 * F.one_hot(ids.clamp(min=0), 12) for ids in (labels, labels.roll(1, 0)))
    assert surrogate(right, labels) < surrogate(wrong, labels)
