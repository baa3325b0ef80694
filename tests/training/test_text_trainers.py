"""ReLossTrainer and ReLossSeq2SeqTrainer with models that write text or tag it."""

import datasets
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForTokenClassification,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import TokenClassifierOutput

from hf_reloss import (
    PredictionRecorder,
    ReLossSeq2SeqTrainer,
    ReLossSeq2SeqTrainingArguments,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForTokens,
    load_metric,
    next_token_labels,
    record_predictions,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(12))]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def sentences(count: int, seed: int = 0) -> datasets.Dataset:
    """Sentences that are to be copied."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(2, 7, (count,), generator=generator).tolist():
        ids = [*torch.randint(4, len(WORDS), (length,), generator=generator).tolist(), 2]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids})
    return datasets.Dataset.from_list(rows)


def make_translator() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in sizes.items()}
    config = BartConfig(
        vocab_size=len(WORDS), d_model=32, max_position_embeddings=32, dropout=0.0, **sizes,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config.update(max_length=10, num_beams=1)
    return model


def surrogate_with_random_weights(**options) -> SurrogateForTokens:
    surrogate = SurrogateForTokens(SurrogateConfig(task="tokens", **options))
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return surrogate


def translating(folder, tokenizer, model=None, trainer_class=ReLossSeq2SeqTrainer, **options):
    model = model or make_translator()
    trainer_options = {
        name: options.pop(name) for name in ("surrogate", "metric", "compute_metrics", "callbacks") if name in options
    }
    settings = {
        "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.01, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 5, "predict_with_generate": True,
    } | options  # fmt: skip
    return trainer_class(
        model,
        ReLossSeq2SeqTrainingArguments(str(folder), **settings),
        train_dataset=sentences(200),
        eval_dataset=sentences(9, seed=1),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        **trainer_options,
    )


def seen_by(model: nn.Module) -> list[dict]:
    """What the model is given from now on."""
    given = []
    model.register_forward_pre_hook(lambda module, args, kwargs: given.append(dict(kwargs)), with_kwargs=True)
    return given


@pytest.mark.parametrize("reach", [0, 2])
def test_the_loss_is_the_surrogates_and_the_model_is_spared_its_own(tokenizer, tmp_path, reach):
    surrogate = surrogate_with_random_weights(reach=reach)
    trainer = translating(tmp_path, tokenizer, surrogate=surrogate)
    trainer.model.train()  # there is no dropout in it
    given = seen_by(trainer.model)
    batch = trainer.data_collator([dict(row) for row in sentences(8)])
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert "labels" not in given[0]
    assert "loss" not in outputs
    whole = trainer.model(**batch)
    torch.testing.assert_close(outputs.logits, whole.logits)
    torch.testing.assert_close(loss, surrogate(whole, batch["labels"]))
    trainer.model_loss_share = 0.25
    torch.testing.assert_close(
        trainer.compute_loss(trainer.model, dict(batch)), 0.75 * surrogate(whole, batch["labels"]) + 0.25 * whole.loss
    )


def test_the_models_share_of_the_loss_can_be_smoothed(tokenizer, tmp_path):
    surrogate, model = surrogate_with_random_weights(), make_translator()
    settings = {"model_loss_share": 0.5, "label_smoothing_factor": 0.1}
    trainer = translating(tmp_path, tokenizer, model, surrogate=surrogate, **settings)
    model.train()
    batch = DataCollatorForSeq2Seq(tokenizer, model)([dict(row) for row in sentences(8)])
    outputs, labels = model(**batch), batch["labels"]
    smoothed = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    expected = 0.5 * surrogate(outputs, labels) + 0.5 * smoothed
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)
    with pytest.raises(ValueError, match="model_loss_share"):
        translating(tmp_path, tokenizer, surrogate=surrogate, label_smoothing_factor=0.1)


def test_evaluation_generates_and_gives_the_models_own_loss_and_the_surrogates(tokenizer, tmp_path):
    seen = []

    def compute_metrics(evaluation):
        seen.append(evaluation)
        return {"examples": float(len(evaluation.label_ids))}

    surrogate = surrogate_with_random_weights()
    trainer = translating(
        tmp_path, tokenizer, surrogate=surrogate, compute_metrics=compute_metrics, per_device_eval_batch_size=16
    )
    measured = trainer.evaluate()
    assert measured["eval_examples"] == 9
    rows = sentences(9, seed=1)
    batch = trainer.data_collator([dict(row) for row in rows])
    with torch.no_grad():
        outputs = trainer.model(**batch)
        expected = surrogate(outputs, batch["labels"])
        generated = trainer.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert measured["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert measured["eval_loss/surrogate"] == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(torch.tensor(seen[0].predictions)[:, : generated.shape[1]], generated)
    assert torch.equal(torch.tensor(seen[0].label_ids), batch["labels"])
    without_labels = trainer.predict(rows.remove_columns("labels"))
    assert without_labels.label_ids is None
    assert len(without_labels.predictions) == 9


@pytest.mark.parametrize("metric", ["sacrebleu", "rouge1"])
def test_auto_learns_a_surrogate_of_a_metric_of_texts_and_trains_on_it(tokenizer, tmp_path, metric):
    trainer = translating(
        tmp_path, tokenizer, surrogate="auto", metric=metric, num_train_epochs=8, surrogate_warmup=0.5,
        compute_metrics=lambda evaluation: {"n": 1.0},
    )  # fmt: skip
    trainer.train()
    config = trainer.surrogate.config
    assert config.task == "tokens"
    assert config.metric == load_metric(metric).signature
    assert config.record["alignment"] > 0.6
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[-3]
    trainer.save_model(str(tmp_path / "saved"))
    again = translating(tmp_path, tokenizer, surrogate=tmp_path / "saved" / "surrogate")
    batch = trainer.data_collator([dict(row) for row in sentences(8)])
    outputs = trainer.model(**batch.to(trainer.args.device))
    assert torch.equal(again.surrogate(outputs, batch["labels"]), trainer.surrogate(outputs, batch["labels"]))


def test_a_recorder_hears_a_model_that_is_spared_its_labels(tokenizer, tmp_path):
    recorder = PredictionRecorder()
    surrogate = surrogate_with_random_weights()
    trainer = translating(tmp_path, tokenizer, surrogate=surrogate, callbacks=[recorder], num_train_epochs=1)
    trainer.train()
    recorded = recorder.dataset(processing_class=tokenizer, metric="sacrebleu")
    assert len(recorded) == 200
    assert {"margins", "teacher_forced", "reference", "stage"} <= set(recorded.column_names)
    references = sorted(tokenizer.decode(row["labels"], skip_special_tokens=True) for row in sentences(200))
    assert sorted(recorded["reference"]) == references


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_part_of_a_models_loss_that_no_surrogate_is_for_is_kept(share, tmp_path):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Embedding(10, 4)

        def forward(self, input_ids, labels=None):
            logits, extra = self.head(input_ids), self.head.weight.square().mean()
            loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + extra
            outputs = TokenClassifierOutput(loss=loss, logits=logits)
            outputs["auxiliary_loss"] = extra
            return outputs

    surrogate = surrogate_with_random_weights()
    args = ReLossTrainingArguments(str(tmp_path), model_loss_share=share)
    trainer = ReLossTrainer(Tagger(), args, surrogate=surrogate)
    batch = {"input_ids": torch.randint(10, (3, 5)), "labels": torch.randint(4, (3, 5))}
    outputs = trainer.model(**batch)
    extra = outputs["auxiliary_loss"]
    expected = (1 - share) * (surrogate(outputs, batch["labels"]) + extra) + share * outputs.loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)


def make_language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0}
    # As large as those of a model that has learned something: adapters of weights near 0 can do little.
    sizes["initializer_range"] = 0.4
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, **sizes))


@pytest.mark.parametrize("surrogate", ["given", "auto"])
def test_language_models_with_adapters_learn_and_only_the_adapters_do(tokenizer, tmp_path, surrogate):
    model = get_peft_model(
        make_language_model(), LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    )
    counting = [[4 + (start + step) % 12 for step in range(9)] for start in range(160)]
    rows = [{"input_ids": ids, "labels": ids} for ids in counting]
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=6, per_device_train_batch_size=8, learning_rate=0.02, save_strategy="no",
        disable_tqdm=True, logging_steps=10, surrogate_warmup=None if surrogate == "given" else 0.7,
    )  # fmt: skip
    options = {"surrogate": "auto", "metric": "rouge1"} if surrogate == "auto" else {
        "surrogate": SurrogateForTokens(SurrogateConfig(task="tokens", max_order=2))
    }  # fmt: skip
    trainer = ReLossTrainer(
        model, args, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer,
        **options,
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = trainer.data_collator([dict(row) for row in rows[:8]])

    def surrogate_loss() -> float:
        return trainer.surrogate(model.eval()(**batch).logits, next_token_labels(batch["labels"])).item()

    loss_before = None if trainer.surrogate is None else surrogate_loss()
    model.train()
    trainer.train()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    if loss_before is not None:
        assert surrogate_loss() < 0.9 * loss_before
    else:
        assert trainer.surrogate.config.record["alignment"] > 0.5


def test_what_a_language_model_would_say_after_the_right_tokens_is_recorded(tokenizer):
    model = make_language_model().eval()
    rows = [{"input_ids": row["labels"], "labels": row["labels"]} for row in sentences(30)]
    recorded = record_predictions(
        model, rows, metric="sacrebleu", data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer
    )
    row = torch.tensor([rows[3]["labels"]])
    with torch.no_grad():
        logits = model(input_ids=row).logits
    assert recorded[3]["labels"] == row[0, 1:].tolist()
    assert recorded[3]["teacher_forced"] == tokenizer.decode(logits[0, :-1].argmax(-1), skip_special_tokens=True)
    assert recorded[3]["reference"] == tokenizer.decode(row[0, 1:], skip_special_tokens=True)


def test_auto_learns_a_surrogate_of_a_metric_of_tags(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=20, num_labels=3, **sizes))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (240, 8), generator=generator)
    labels = (ids % 3).masked_fill(torch.arange(8) == 0, -100)
    rows = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
    metric = load_metric("seqeval", label_names=["O", "B-X", "I-X"])
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=6, per_device_train_batch_size=8, learning_rate=0.01, surrogate_warmup=0.3,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = ReLossTrainer(model, args, train_dataset=rows, surrogate="auto", metric=metric)
    trainer.train()
    assert trainer.surrogate.config.record["alignment"] > 0.6
    decided = model.eval()(input_ids=ids.to(model.device)).logits.argmax(-1).cpu()
    assert metric.compute(decided, labels) > 0.9
