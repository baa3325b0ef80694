"""What is asked of any model."""

import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.predictions.models import metric_for

TAGS = ["O", "B-PER", "I-PER"]


def tagger(**options) -> BertForTokenClassification:
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **options
    )
    return BertForTokenClassification(config)


def test_a_metric_of_tags_has_those_of_the_model_if_it_was_told_none():
    model = tagger(id2label=dict(enumerate(TAGS)))
    assert list(metric_for(model, "seqeval").label_names) == TAGS
    assert list(metric_for(model, load_metric("seqeval", label_names=["O", "B-X"])).label_names) == ["O", "B-X"]
    assert metric_for(tagger(num_labels=3), "seqeval").label_names is None  # LABEL_0 and so on are no tags
    assert metric_for(nn.Linear(2, 2), "f1") == load_metric("f1")


def test_pixels_that_a_model_ignores_do_not_count():
    model = nn.Linear(2, 2)
    model.config = BertConfig(semantic_loss_ignore_index=7)
    assert metric_for(model, "mean_iou").ignore_index == 7
    assert metric_for(model, load_metric("mean_iou", ignore_index=3)).ignore_index == 3


def test_auto_learns_the_f1_of_entities_by_its_name_alone(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(3, 12, (400, 6))
    rows = [{"input_ids": row, "labels": torch.where(row > 9, 1, 0)} for row in ids]
    args = ReLossTrainingArguments(
        str(tmp_path), max_steps=40, per_device_train_batch_size=16, learning_rate=1e-2, use_cpu=True,
        disable_tqdm=True, save_strategy="no", surrogate_warmup=12,
    )  # fmt: skip
    model = tagger(id2label=dict(enumerate(TAGS)))
    trainer = ReLossTrainer(model, args, train_dataset=rows, surrogate="auto", metric="seqeval")
    trainer.train()
    assert list(trainer.metric.label_names) == TAGS
    assert trainer.strategy.state.switched_at is not None
