"""Question answering as transformers' examples have it: trainer_qa.py under ReLossMixin."""

import datasets
import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_reloss import ReLossMixin, ReLossTrainer, ReLossTrainingArguments, load_metric

from ..training.test_rewards import make_tokenizer
from ..training.test_text_trainers import make_tokenizer as make_writers_tokenizer
from ..training.test_text_trainers import make_translator, sentences

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class QuestionAnsweringTrainer(Trainer):
    """As trainer_qa.py: compute_metrics gets texts, which post_process_function finds for eval_examples."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples, self.post_process_function = eval_examples, post_process_function

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        examples = self.eval_examples if eval_examples is None else eval_examples
        output = self._run("Evaluation", self.get_eval_dataloader(dataset), ignore_keys, metric_key_prefix)
        if self.post_process_function is not None and self.compute_metrics is not None and self.args.should_save:
            found = self.compute_metrics(self.post_process_function(examples, dataset, output.predictions))
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in found.items()})
        self.log(output.metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, output.metrics)
        return output.metrics

    def predict(self, predict_dataset, predict_examples, ignore_keys=None, metric_key_prefix="test"):
        output = self._run("Prediction", self.get_test_dataloader(predict_dataset), ignore_keys, metric_key_prefix)
        texts = self.post_process_function(predict_examples, predict_dataset, output.predictions, "predict")
        found = {f"{metric_key_prefix}_{key}": value for key, value in self.compute_metrics(texts).items()}
        return output._replace(predictions=texts.predictions, metrics=output.metrics | found)

    def _run(self, description, loader, ignore_keys, prefix):
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            return self.evaluation_loop(
                loader, description=description, prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys, metric_key_prefix=prefix,
            )  # fmt: skip
        finally:
            self.compute_metrics = compute_metrics


class Mine(ReLossMixin, QuestionAnsweringTrainer):
    pass


def questions(count: int, unanswered: bool) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Examples and features: the answer goes from w0 to w11 or w12; of some questions there is none, at position 0."""
    generator = torch.Generator().manual_seed(count)
    rows, examples = [], []
    for number in range(count):
        ids = torch.randint(4, 14, (12,), generator=generator)
        ids[0] = 2
        start = int(torch.randint(2, 10, (), generator=generator))
        has_answer = not (unanswered and number % 3 == 0)
        if has_answer:
            ids[start], ids[start + 1] = 3, 14 + number % 2
        place = (start, start + 1) if has_answer else (0, 0)
        rows.append({"input_ids": ids.tolist(), "start_positions": place[0], "end_positions": place[1]})
        text = [" ".join(f"w{id - 3}" for id in ids[place[0] : place[1] + 1].tolist())] if has_answer else []
        examples.append({"id": str(number), "answers": {"text": text, "answer_start": [0] * len(text)}})
    return datasets.Dataset.from_list(examples), datasets.Dataset.from_list(rows)


def post_process(examples, features, predictions, stage="eval"):
    starts, ends = (torch.as_tensor(logits).argmax(-1).tolist() for logits in predictions[:2])
    found = []
    for example, ids, start, end in zip(examples, features["input_ids"], starts, ends, strict=True):
        text = " ".join(f"w{id - 3}" for id in ids[start : end + 1]) if start > 0 else ""
        found.append({"id": example["id"], "prediction_text": text})
    return EvalPrediction(
        predictions=found, label_ids=[{"id": each["id"], "answers": each["answers"]} for each in examples]
    )


@pytest.mark.parametrize(
    ("key", "unanswered", "name"),
    [("f1", False, "squad_f1"), ("exact_match", False, "squad_exact_match"), ("f1", True, "squad_v2_f1")],
)
def test_answers_that_are_spans(tmp_path, key, unanswered, name):
    """The key is what evaluate's squad and squad_v2 call it, which compute_metrics cannot be asked of in training."""
    metric = load_metric(name)

    def compute_metrics(found):  # as `evaluate.load("squad")` would, by its own words
        return {key: metric.compute(found.predictions, found.label_ids)}

    examples, features = questions(240, unanswered)

    def train(checkpoint=None):
        torch.manual_seed(0)
        model = BertForQuestionAnswering(BertConfig(vocab_size=16, hidden_dropout_prob=0.0, **SIZES))
        args = TrainingArguments(
            str(tmp_path), max_steps=60, per_device_train_batch_size=16, learning_rate=1e-2, eval_strategy="steps",
            eval_steps=20, save_steps=20, use_cpu=True, disable_tqdm=True, metric_for_best_model=key,
            load_best_model_at_end=True,
        )  # fmt: skip
        trainer = Mine(
            model, args, train_dataset=features, eval_dataset=features.select(range(60)),
            processing_class=make_tokenizer(), eval_examples=examples.select(range(60)),
            post_process_function=post_process, compute_metrics=compute_metrics, metric=key,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    trainer = train()
    assert trainer.surrogate is not None, trainer.loss_report.verdict
    assert trainer.metric.name == {"f1": "squad_v2_f1"}.get(key, "squad_v2_exact")  # the same if all have an answer
    scores = [entry[f"eval_{key}"] for entry in trainer.state.log_history if f"eval_{key}" in entry]
    assert len(scores) == 3
    assert scores[-1] > 30
    predicted = trainer.predict(features.select(range(60)), examples.select(range(60)))
    assert predicted.metrics[f"test_{key}"] == pytest.approx(trainer.evaluate()[f"eval_{key}"])
    if unanswered:
        resumed = train(str(tmp_path / "checkpoint-40"))
        assert resumed.state.global_step == 60
        assert resumed.surrogate is not None


def test_without_compute_metrics_f1_of_answers_is_squads_too(tmp_path):
    _, features = questions(32, False)
    model = BertForQuestionAnswering(BertConfig(vocab_size=16, **SIZES))
    args = ReLossTrainingArguments(str(tmp_path), max_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True)
    trainer = ReLossTrainer(model, args, train_dataset=features, processing_class=make_tokenizer(), metric="f1")
    trainer.train()
    assert trainer.metric == load_metric("squad_v2_f1")


class QuestionAnsweringSeq2SeqTrainer(Seq2SeqTrainer):
    """As trainer_seq2seq_qa.py."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples, self.post_process_function = eval_examples, post_process_function

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs):
        self._gen_kwargs = {"max_length": self.args.generation_max_length, "num_beams": 1} | gen_kwargs
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.get_eval_dataloader(dataset)
        output = QuestionAnsweringTrainer._run(self, "Evaluation", loader, ignore_keys, metric_key_prefix)
        found = self.compute_metrics(self.post_process_function(eval_examples or self.eval_examples, dataset, output))
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in found.items()})
        self.log(output.metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, output.metrics)
        return output.metrics


class Writing(ReLossMixin, QuestionAnsweringSeq2SeqTrainer):
    pass


def test_answers_that_are_written(tmp_path):
    """Of a copied question as its answer."""
    tokenizer, metric, train, test = make_writers_tokenizer(), load_metric("squad_f1"), sentences(320), sentences(40, 1)
    answers = [{"id": str(row), "answers": {"text": [tokenizer.decode(ids, skip_special_tokens=True)]}}
               for row, ids in enumerate(test["labels"])]  # fmt: skip

    def post_process(examples, features, output):
        ids = output.predictions
        texts = tokenizer.batch_decode([row[row >= 0] for row in ids], skip_special_tokens=True)
        found = [{"id": each["id"], "prediction_text": text} for each, text in zip(examples, texts, strict=True)]
        return EvalPrediction(predictions=found, label_ids=examples)

    def trained(checkpoint=None):
        args = Seq2SeqTrainingArguments(
            str(tmp_path), max_steps=80, per_device_train_batch_size=16, learning_rate=1e-2, eval_strategy="steps",
            eval_steps=40, save_steps=40, use_cpu=True, disable_tqdm=True, predict_with_generate=True,
            generation_max_length=10,
        )  # fmt: skip
        trainer = Writing(
            make_translator(), args, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer), eval_examples=answers, post_process_function=post_process,
            compute_metrics=lambda found: {"f1": metric.compute(found.predictions, found.label_ids)}, metric="f1",
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    trainer = trained()
    scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
    assert len(scores) == 2
    assert scores[-1] > 40
    assert trainer.metric.name == "squad_v2_f1"
    assert trained(str(tmp_path / "checkpoint-40")).state.global_step == 80
