"""What a Trainer can do beside its plain way, on a surrogate: nothing of it changes what is learned."""

import datasets
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import AutoSurrogate, PredictionRecorder, ReLossTrainer

from ..conftest import TinyClassifier, tiny_rows


def make_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, num_labels=4, max_position_embeddings=8, **sizes, **dropout)
    )


def sentences() -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (60, 8), generator=generator)
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 4).tolist()})


def trained(folder, model: nn.Module, data, plain: bool = False, recorder=None, **options) -> dict[str, torch.Tensor]:
    """The weights after some steps on a surrogate: by ReLossTrainer, or by Trainer and a plain function."""
    args = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=16, learning_rate=1e-2, save_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=3, **options,
    )  # fmt: skip
    loss = AutoSurrogate.from_pretrained("reloss/accuracy").freeze()
    if plain:
        trainer = Trainer(
            model, args, train_dataset=data,
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss(outputs, labels),
        )  # fmt: skip
    else:
        callbacks = [] if recorder is None else [recorder]
        trainer = ReLossTrainer(model, args, train_dataset=data, surrogate=loss, callbacks=callbacks)
    trainer.train()
    return {name.removeprefix("_orig_mod."): weight for name, weight in trainer.model.state_dict().items()}


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.0),
        ({"gradient_checkpointing": True}, 1e-6),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-6),
        ({"dataloader_drop_last": True}, 0.0),
        ({"dataloader_num_workers": 1}, 0.0),
    ],
    ids=["plain", "gradient_checkpointing", "torch_compile", "drop_last", "workers"],
)
def test_it_learns_what_a_trainer_learns(tmp_path, options, tolerance):
    reference = {name: value for name, value in options.items() if name == "dataloader_drop_last"}
    expected = trained(tmp_path, make_bert(), sentences(), plain=True, **reference)
    assert_close(expected, trained(tmp_path, make_bert(), sentences(), **options), tolerance)


def test_a_stream_of_examples_is_learned_from(tmp_path):
    stream = sentences().to_iterable_dataset()
    expected = trained(tmp_path, make_bert(), stream, plain=True)
    assert_close(expected, trained(tmp_path, make_bert(), sentences().to_iterable_dataset()))


class Hungry(TinyClassifier):
    """Has no memory for more than four examples."""

    def forward(self, features, labels=None):
        if len(features) > 4:
            raise RuntimeError("CUDA out of memory.")
        return super().forward(features, labels)


def test_a_batch_that_does_not_fit_is_made_smaller_as_a_trainer_makes_it(tmp_path):
    torch.manual_seed(0)
    expected = trained(tmp_path, Hungry(), tiny_rows(64), plain=True, auto_find_batch_size=True)
    torch.manual_seed(0)
    model, recorder = Hungry(), PredictionRecorder()
    assert_close(expected, trained(tmp_path, model, tiny_rows(64), recorder=recorder, auto_find_batch_size=True))
    assert len(recorder) == 8 * 4  # of the run that went through


class Unlabelled(nn.Module):
    """A classifier whose forward knows nothing of labels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, features: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(features))


def test_a_model_need_not_know_of_labels(tmp_path):
    torch.manual_seed(0)
    model = TinyClassifier()
    unlabelled = Unlabelled()
    unlabelled.load_state_dict(model.state_dict())
    expected = trained(tmp_path, model, tiny_rows(64))
    recorder = PredictionRecorder(label_names=["labels"])
    assert_close(expected, trained(tmp_path, unlabelled, tiny_rows(64), recorder=recorder, label_names=["labels"]))
    assert len(recorder) == 8 * 16
