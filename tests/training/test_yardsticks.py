"""What a run is judged by while the loss changes: eval_loss, early stopping, schedulers, best checkpoints, pages."""

import itertools

import datasets
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForTokenClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_reloss import (
    AdaptiveLossTrainer,
    ReLossTrainingArguments,
    SurrogateForClassification,
    SurrogateForTokens,
    load_metric,
)

from ..conftest import TinyClassifier, tiny_rows
from .test_monitor import logged
from .test_trainer import make_trainer, weights

EVALUATES = {"eval_strategy": "steps", "eval_steps": 10}


class Saved(PreTrainedModel):
    """TinyClassifier as a model of transformers, for which pages are written."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig | None = None):
        super().__init__(config or PreTrainedConfig())
        self.inner = TinyClassifier(dropout=0.1)
        self.post_init()

    def forward(self, features, labels=None):
        return self.inner(features, labels)


def own_loss(trainer) -> float:
    """What a plain Trainer measures of the same model."""
    args = TrainingArguments(trainer.args.output_dir, report_to="none", disable_tqdm=True, use_cpu=True)
    return Trainer(trainer.model, args, eval_dataset=trainer.eval_dataset).evaluate()["eval_loss"]


def test_while_the_loss_changes_eval_loss_is_the_models_own(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=0.5, **EVALUATES)
    trainer.train()
    losses = logged(trainer, "eval_loss")
    assert max(b - a for a, b in itertools.pairwise(losses)) < 0.05  # no jump where the loss changes
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(own_loss(trainer), abs=1e-5)
    batch = [trainer.eval_dataset[i] for i in range(len(trainer.eval_dataset))]
    logits = trainer.model(torch.stack([row["features"] for row in batch])).logits
    of_surrogate = trainer.surrogate(logits, torch.stack([row["labels"] for row in batch]))
    assert found["eval_loss/surrogate"] == pytest.approx(of_surrogate.item(), abs=1e-5)
    assert next(entry["step"] for entry in trainer.state.log_history if "eval_loss/surrogate" in entry) == 60


def test_with_a_given_surrogate_eval_loss_is_that_surrogates(tmp_path):
    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification.for_metric("accuracy"))
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > own_loss(trainer) + 0.05
    assert "eval_loss/surrogate" not in trainer.evaluate()


def test_early_stopping_and_plateau_schedulers_follow_the_model(tmp_path):
    settings = {"metric": "accuracy", "surrogate_warmup": 0.5, "learning_rate": 3e-3, **EVALUATES}
    stopping = make_trainer(
        tmp_path, load_best_model_at_end=True, save_strategy="steps", save_steps=10, logging_steps=10, **settings
    )
    stopping.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    stopping.train()
    assert stopping.state.global_step == 120
    plateau = make_trainer(
        tmp_path, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0}, logging_steps=10,
        **settings,
    )  # fmt: skip
    plateau.train()
    assert set(logged(plateau, "learning_rate")) == {3e-3}


def test_the_alignment_is_there_in_every_evaluation_and_may_choose_the_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path, metric="accuracy", surrogate_warmup=0.5, save_strategy="best", metric_for_best_model="alignment",
        **EVALUATES,
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "eval_alignment")) == len(logged(trainer, "eval_loss")) == 12
    assert trainer.state.best_metric == max(logged(trainer, "eval_alignment"))
    few = make_trainer(
        tmp_path, metric="accuracy", save_strategy="best", metric_for_best_model="alignment", **EVALUATES
    )
    few.eval_dataset = tiny_rows(20)  # too few to measure it on
    few.train()
    assert few.state.global_step == 120


def test_the_page_can_be_written_whatever_each_evaluation_had(tmp_path):
    trainer = make_trainer(tmp_path, model=Saved(), metric="accuracy", surrogate_warmup=0.5, **EVALUATES)
    trainer.train()
    trainer.create_model_card()
    page = (tmp_path / "README.md").read_text()
    assert "No log" in page
    assert "on its own loss alone" not in page


def test_where_the_best_checkpoint_is_from_before_the_switch_the_page_says_so(tmp_path):
    calls = []

    def falling(evaluation):
        calls.append(len(evaluation.label_ids))
        return {"accuracy": 1.0 / len(calls)}

    settings = {"save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True, "surrogate_warmup": 30}
    settings |= {"metric_for_best_model": "accuracy", "compute_metrics": falling} | EVALUATES
    for options in ({"metric": load_metric("accuracy")}, {"surrogate": "focal"}):
        calls.clear()
        trainer = make_trainer(tmp_path / "run", model=Saved(), **options, **settings)
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
        assert "on its own loss alone" in (tmp_path / "run" / "README.md").read_text()
    assert trainer.surrogate is not None  # given, it stays


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"surrogate": "focal"}, "on the loss `focal`, of which nothing is learned"),
        ({"surrogate": SurrogateForClassification.for_metric("accuracy")}, "the soft form of the metric"),
        ({"surrogate": "reloss/accuracy"}, "a learned surrogate of the metric"),
        ({"metric": "accuracy", "max_steps": 10}, "on its own loss alone"),
    ],
)
def test_a_page_says_on_what_the_model_was_trained(tmp_path, options, says):
    trainer = make_trainer(tmp_path, model=Saved(), **options)
    trainer.train()
    trainer.create_model_card()
    page = (tmp_path / "README.md").read_text()
    assert says in " ".join(page.split())


def words(n: int, seed: int = 0) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(4, 12, (n, 1), generator=generator)
    ids = (first + torch.arange(10)) % 16 + 4
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=1))


@pytest.mark.parametrize("surrogate", ["auto", "given"])
def test_of_a_model_that_writes_text_eval_loss_is_what_perplexity_is_made_of(tmp_path, surrogate):
    given = SurrogateForTokens.for_metric("accuracy") if surrogate == "given" else "auto"
    trainer = make_trainer(
        tmp_path, model=language_model(), surrogate=given, metric="accuracy", compute_metrics=None, learning_rate=1e-2
    )
    trainer.train_dataset, trainer.eval_dataset = words(240), words(100, seed=1)
    trainer.train()
    found = trainer.evaluate()
    ids = torch.tensor(trainer.eval_dataset["input_ids"][:])
    assert found["eval_loss"] == pytest.approx(trainer.model(input_ids=ids, labels=ids).loss.item(), abs=1e-4)
    assert found["eval_loss/surrogate"] > 0
    assert trainer.model_loss_share == (0.5 if surrogate == "auto" else 0.0)


def tagger(dropout: float = 0.0) -> BertForTokenClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForTokenClassification(BertConfig(vocab_size=30, num_labels=4, **sizes))


def tags(n: int, seed: int = 0) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 30, (n, 8), generator=generator)
    labels = (ids % 4).index_fill(1, torch.tensor([0, 7]), -100)
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


@pytest.mark.parametrize("key", ["overall_f1", "eval_overall_f1"])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_a_key_of_compute_metrics_is_that_function_for_taggers_too(tmp_path, key, preprocessed):
    """The share of right tags that are not 0, which no metric that is known by name is."""
    seen = []

    def compute_metrics(evaluation):
        decided, labels = evaluation.predictions, evaluation.label_ids
        seen.append((decided.shape, labels.shape))
        decided = decided if preprocessed else decided.argmax(-1)
        counts = labels > 0
        return {"overall_f1": float((decided == labels)[counts].mean())}

    trainer = make_trainer(
        tmp_path, model=tagger(), metric=key, compute_metrics=compute_metrics, learning_rate=1e-2, surrogate_warmup=0.5,
        preprocess_logits_for_metrics=(lambda logits, labels: logits.argmax(-1)) if preprocessed else None,
    )  # fmt: skip
    trainer.train_dataset, trainer.eval_dataset = tags(240), tags(120, seed=1)
    trainer.train()
    assert trainer.metric.name == "overall_f1"
    assert "compute_metrics" in trainer.metric.signature
    size = trainer.surrogate.config.record["group_size"]
    shape = (size, 8) if preprocessed else (size, 8, 4)
    assert (shape, (size, 8)) in seen  # as in an evaluation: -100 stands where it stood
    recorded = trainer.strategy.recorder.dataset()
    columns = {name: torch.tensor(recorded[name][:]) for name in recorded.column_names if "evaluation" in name}
    found = trainer.metric.score_one(*trainer.metric.columns(columns))
    labels = torch.tensor(recorded["evaluation labels 0"][:])
    decided = torch.tensor(recorded["evaluation predictions 0"][:])
    decided = decided if preprocessed else decided.argmax(-1)
    assert found == pytest.approx((decided == labels)[labels > 0].double().mean().item())


def test_a_key_that_needs_too_much_to_be_recorded_says_what_to_pass(tmp_path):
    trainer = make_trainer(
        tmp_path, model=tagger(), metric="mine", compute_metrics=lambda evaluation: {"mine": 1.0},
        max_recorded_predictions=50_000_000,
    )  # fmt: skip
    trainer.train_dataset = tags(80)
    trainer.train()
    assert "preprocess_logits_for_metrics" in trainer.strategy.own_loss_because
    assert trainer.state.global_step == trainer.state.max_steps


def mean_by_items(outputs, labels, num_items_in_batch):
    """As in the documentation of transformers."""
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("options", [{"metric": "accuracy"}, {"surrogate": "focal", "model_loss_share": 0.5}])
def test_a_custom_loss_takes_the_number_of_items(tmp_path, options):
    found = []
    for function in (None, mean_by_items):
        trainer = make_trainer(
            tmp_path, surrogate_warmup=40, num_train_epochs=2, gradient_accumulation_steps=2,
            compute_loss_func=function, **options,
        )  # fmt: skip
        trainer.train()
        found.append(weights(trainer))
    for one, two in zip(*(each.values() for each in found), strict=True):
        torch.testing.assert_close(one, two)


def test_evaluation_is_on_its_own_data_while_a_controller_reads_others(tmp_path):
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=2, adapt_steps=20, dataloader_persistent_workers=True, dataloader_num_workers=1,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = AdaptiveLossTrainer(
        TinyClassifier(), args, metric="accuracy", train_dataset=tiny_rows(240), eval_dataset=tiny_rows(100, seed=1),
        validation_dataset=tiny_rows(40), compute_metrics=lambda evaluation: {"number": len(evaluation.label_ids)},
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_number"] == len(trainer.eval_dataset) == 100
