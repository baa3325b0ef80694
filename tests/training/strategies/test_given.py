"""What `surrogate=` may be: a surrogate, where one lies, or the name of a loss for what the model does."""

import time

import datasets
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification, BertForTokenClassification

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForClassification, hand_made_loss
from hf_reloss.training.strategies.given import training_labels

from ...conftest import TinyClassifier, tiny_rows

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def args(folder, **options) -> ReLossTrainingArguments:
    usual = {"max_steps": 3, "per_device_train_batch_size": 16, "save_strategy": "no", "disable_tqdm": True}
    return ReLossTrainingArguments(str(folder), use_cpu=True, **usual | options)


def tagged(n: int = 60, ragged: bool = False) -> datasets.Dataset:
    ids = torch.randint(5, 20, (n, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row.tolist(), "labels": [-100, *(row[1:] % 3).tolist()]} for row in ids]
    lengths = [5 + index % 5 if ragged else 9 for index in range(n)]
    cut = [{name: column[:length] for name, column in row.items()} for row, length in zip(rows, lengths, strict=True)]
    return datasets.Dataset.from_list(cut)


def tagger() -> BertForTokenClassification:
    return BertForTokenClassification(BertConfig(**SIZES, num_labels=3, hidden_dropout_prob=0.0))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly1", "class_weights"])
def test_losses_of_single_predictions_are_for_tokens_too(name):
    logits, labels = torch.randn(4, 7, 3), torch.randint(3, (4, 7))
    labels[0, 3:], labels[1] = -100, -100
    options = {"frequencies": [0.5, 0.3, 0.2]} if name == "class_weights" else {}
    counts = labels != -100
    loss = hand_made_loss(name, task="tokens", **options)(logits, labels)
    torch.testing.assert_close(loss, hand_made_loss(name, **options)(logits[counts], labels[counts]))


def test_cross_entropy_of_tokens_has_the_gradient_of_torchs():
    logits, labels = torch.randn(4, 7, 30, requires_grad=True), torch.randint(30, (4, 7))
    (ours,) = torch.autograd.grad(hand_made_loss("cross_entropy", task="tokens")(logits, labels), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ragged", [False, True])
def test_taggers_train_on_class_weights_of_all_their_tokens(tmp_path, ragged):
    rows, model = tagged(ragged=ragged), tagger()
    collator = None
    if ragged:
        collator = lambda features: {  # noqa: E731
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[name]) for row in features], batch_first=True, padding_value=padding
            )
            for name, padding in (("input_ids", 0), ("labels", -100))
        }
    trainer = ReLossTrainer(
        model, args(tmp_path), train_dataset=rows, data_collator=collator, surrogate="class_weights"
    )
    labels = torch.cat([torch.tensor(row) for row in rows["labels"]])
    torch.testing.assert_close(
        trainer.surrogate.network.frequencies, torch.bincount(labels[labels >= 0]) / (labels >= 0).sum()
    )
    before = model.classifier.weight.clone()
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)


def test_a_surrogate_of_classes_is_refused_for_tokens_with_what_there_is(tmp_path):
    surrogate = SurrogateForClassification.for_metric("accuracy")
    trainer = ReLossTrainer(tagger(), args(tmp_path), train_dataset=tagged(), surrogate=surrogate)
    with pytest.raises(ValueError, match=r"for classification, reads one label per example.*SurrogateForTokens"):
        trainer.train()


def test_a_loss_that_only_classes_have_names_those_of_tokens(tmp_path):
    with pytest.raises(
        ValueError, match=r"'lovasz' is for classification and segmentation. For tokens there are: .*focal"
    ):
        ReLossTrainer(tagger(), args(tmp_path), train_dataset=tagged(), surrogate="lovasz")


def test_labels_are_counted_of_a_data_set_that_is_passed_by_position(tmp_path):
    trainer = ReLossTrainer(TinyClassifier(), args(tmp_path), None, tiny_rows(100), surrogate="class_weights")
    trainer.train()
    assert len(trainer.surrogate.network.frequencies) == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ant", "bee"] * 4, r"counts the labels of train_dataset, class indices, but the first"),
        ([0.5] * 8, r"counts the labels of train_dataset, class indices, but the first"),
        ([[1.0, 0.0]] * 8, r"all or none have the labels \[0, 1\]"),
    ],
)
def test_labels_that_cannot_be_counted_are_shown(tmp_path, labels, message):
    rows = datasets.Dataset.from_dict({"features": [[0.0] * 6] * 8, "labels": labels})
    with pytest.raises(ValueError, match=message):
        ReLossTrainer(TinyClassifier(), args(tmp_path), train_dataset=rows, surrogate="class_weights")


def test_training_labels_are_found_under_the_names_that_collators_know():
    rows = [{"x": 1, "label_ids": 2}, {"x": 1, "label_ids": 0}]
    assert training_labels(rows) == [2, 0]
    assert training_labels(rows, ["x"]) == [1, 1]
    assert training_labels([{"x": 1}]) is None
    assert training_labels(None) is None


class Dear(torch.utils.data.Dataset):
    """Counts how often an example is read, as an image would be decoded."""

    def __init__(self):
        self.rows, self.reads = tiny_rows(50), 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.reads += 1
        return self.rows[index]


@pytest.mark.parametrize(("name", "most"), [("focal", 2), ("class_weights", 60)])
def test_examples_are_read_only_where_their_labels_are_counted(tmp_path, name, most):
    data = Dear()
    ReLossTrainer(TinyClassifier(), args(tmp_path), train_dataset=data, surrogate=name)
    assert data.reads <= most


def test_a_mistyped_word_is_refused_at_once_with_the_nearest(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no loss 'facal' \(is 'focal' meant\?\)"):
        ReLossTrainer(TinyClassifier(), args(tmp_path), train_dataset=tiny_rows(16), surrogate="facal")
    assert time.monotonic() - began < 5


def test_a_loss_of_embeddings_on_a_classifier_is_told(tmp_path, caplog):
    pytest.importorskip("pytorch_metric_learning")
    model = BertForSequenceClassification(BertConfig(**SIZES))
    ReLossTrainer(model, args(tmp_path), train_dataset=tiny_rows(16), surrogate="margin_loss")
    assert "one of metric learning" in caplog.text
    with pytest.raises(ValueError, match="is 'margin_loss' meant"):  # which is not the soft form of accuracy
        ReLossTrainer(model, args(tmp_path), train_dataset=tiny_rows(16), surrogate="margin")


def test_a_loss_with_a_size_of_its_own_has_that_of_the_labels(tmp_path):
    trainer = ReLossTrainer(
        TinyClassifier(), args(tmp_path), train_dataset=tiny_rows(100), surrogate="class_correlation"
    )
    trainer.train()
    assert trainer.surrogate.network.classes == 4


def test_processes_that_do_not_train_together_are_told(tmp_path, monkeypatch, caplog):
    options = args(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    ReLossTrainer(TinyClassifier(), options, train_dataset=tiny_rows(16), surrogate="focal")
    assert "2 processes were launched, but each of them trains a model of its own" in caplog.text


def test_labels_of_two_shapes_are_named(tmp_path):
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8), "next_sentence_label": torch.tensor(0)}] * 16
    surrogate = SurrogateForClassification.for_metric("accuracy")
    trainer = ReLossTrainer(
        BertForPreTraining(BertConfig(**SIZES)), args(tmp_path), train_dataset=rows, surrogate=surrogate
    )
    with pytest.raises(ValueError, match=r"labels \[16, 8\], next_sentence_label \[16\].*label_names"):
        trainer.train()


def test_groups_of_one_example_are_told(tmp_path, caplog):
    options = args(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    ReLossTrainer(TinyClassifier(), options, train_dataset=tiny_rows(16), surrogate="auc_margin").train()
    assert "compares the examples of a group" in caplog.text


@pytest.mark.parametrize("warmup", [-5, 1.0, 2.5])
def test_a_warmup_that_is_neither_a_share_nor_steps_is_refused(tmp_path, warmup):
    with pytest.raises(ValueError, match="surrogate_warmup"):
        ReLossTrainer(
            TinyClassifier(), args(tmp_path, surrogate_warmup=warmup), train_dataset=tiny_rows(16), surrogate="focal"
        )
