"""attach: a surrogate as the loss of a model itself, whichever way its class computes one."""

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_reloss import (
    AutoSurrogate,
    attach,
    hand_made_loss,
    load_metric,
    next_token_labels,
)

from ..conftest import TinyClassifier, tiny_rows

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LLAMA = LlamaConfig(vocab_size=20, num_key_value_heads=2, num_labels=3, pad_token_id=0, **SIZES)
BERT = BertConfig(vocab_size=20, num_labels=3, **SIZES)
VIT = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
BART = BartConfig(
    vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
    encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip

IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
CLASSES = {"labels": torch.tensor([0, 2, 1, 1])}
TAGS = {"labels": (IDS % 3).index_fill(1, torch.tensor([0, 6]), -100)}
SPANS = {"start_positions": torch.tensor([1, 0, 3, 2]), "end_positions": torch.tensor([2, 0, 3, 5])}
WORDS = {"labels": IDS.index_fill(1, torch.tensor([0, 1]), -100)}


def case(model, inputs, loss):
    return pytest.param(model, inputs, loss, id=f"{model[0].__name__}-{loss}")


@pytest.mark.parametrize(
    ("model", "labels", "loss"),
    [
        case((LlamaForSequenceClassification, LLAMA), CLASSES, "reloss/macro-f1"),
        case((BertForSequenceClassification, BERT), CLASSES, "reloss/accuracy"),
        case((ViTForImageClassification, VIT), CLASSES, "focal"),
        case((LlamaForTokenClassification, LLAMA), TAGS, "poly1"),
        case((BertForTokenClassification, BERT), TAGS, "focal"),
        case((LlamaForQuestionAnswering, LLAMA), SPANS, "reloss/squad-f1"),
        case((BertForQuestionAnswering, BERT), SPANS, "reloss/squad-f1"),
        case((LlamaForCausalLM, LLAMA), WORDS, "reloss/bleu"),
        case((BartForConditionalGeneration, BART), WORDS, "focal"),
    ],
)
def test_the_gradient_is_the_surrogates_on_the_same_logits_and_detached_the_models_own(model, labels, loss):
    kind, config = model
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, **SIZES) if kind is BertForQuestionAnswering else config  # of two labels
    model = kind(config).eval()
    inputs = {"pixel_values": torch.randn(4, 1, 8, 8)} if kind is ViTForImageClassification else {"input_ids": IDS}

    def gradients(value):
        return torch.autograd.grad(value, list(model.parameters()), allow_unused=True)

    own = model(**inputs, **labels).loss
    outputs = model(**inputs, **({"labels": WORDS["labels"]} if kind is BartForConditionalGeneration else {}))
    given = labels["labels"] if "labels" in labels else torch.stack(list(labels.values()), -1)
    given = next_token_labels(given) if kind is LlamaForCausalLM else given
    task = "tokens" if given is not CLASSES["labels"] else "classification"
    surrogate = AutoSurrogate.from_pretrained(loss) if "/" in loss else hand_made_loss(loss, task=task)
    expected = surrogate(outputs, given)
    with attach(model, loss) as attached:
        found = model(**inputs, **labels)
        torch.testing.assert_close(found.loss, expected)
        assert type(found) is type(outputs)
        for one, two in zip(gradients(found.loss), gradients(expected), strict=True):
            torch.testing.assert_close(one, two)
        in_tuple = model(**inputs, **labels, return_dict=False)
        torch.testing.assert_close(in_tuple[0], expected)
        assert model(**inputs).get("loss") is None
        assert attached.surrogate.config.task == surrogate.config.task
        assert not any("surrogate" in name for name in model.state_dict())
    torch.testing.assert_close(model(**inputs, **labels).loss, own)
    assert not torch.isclose(own, expected)


def test_a_trainer_trains_on_it_under_accumulation_as_on_the_whole_batch(tmp_path):
    """Of sentences of different lengths, which Trainer divides by the number of their tokens in the whole step."""
    rows = [{"input_ids": row, "labels": [-100] * start + row[start:]} for start, row in enumerate(IDS.tolist())]

    def trained(size):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LLAMA)
        args = TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
            learning_rate=0.1, optim="sgd", max_grad_norm=1e9, save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        with attach(model, hand_made_loss("focal", task="tokens")):
            Trainer(model, args, train_dataset=datasets.Dataset.from_list(rows)).train()
        return model.state_dict()

    whole, in_parts = trained(4), trained(1)
    start = LlamaForCausalLM(LLAMA).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-4, atol=1e-6)


def test_adapters_and_models_of_ones_own_have_it_too():
    torch.manual_seed(0)
    adapted = get_peft_model(LlamaForCausalLM(LLAMA), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    surrogate = hand_made_loss("focal", task="tokens")
    with attach(adapted, surrogate):
        loss = adapted(input_ids=IDS, **WORDS).loss
    expected = surrogate(adapted(input_ids=IDS), next_token_labels(WORDS["labels"]))
    torch.testing.assert_close(loss, expected)
    assert adapted.get_base_model().loss_function is ForCausalLMLoss
    own, rows = TinyClassifier(), tiny_rows(8)
    features, labels = (torch.stack([row[name] for row in rows]) for name in ("features", "labels"))
    attached = attach(own, "focal")
    torch.testing.assert_close(own(features, labels).loss, hand_made_loss("focal")(own(features), labels))
    attached.detach()
    torch.testing.assert_close(own(features, labels).loss, nn.functional.cross_entropy(own(features).logits, labels))


def test_it_says_what_to_do_where_it_cannot_be_attached():
    model = BertForSequenceClassification(BERT)
    with pytest.raises(ValueError, match=r"Linear is given no labels.*ReLossMixin"):
        attach(nn.Linear(2, 2), "focal")
    with pytest.raises(ValueError, match=r"There is no loss 'focl' .is 'focal' meant"):
        attach(model, "focl")
    with pytest.raises(ValueError, match="'auto' is a way to train"):
        attach(model, "auto")
    with pytest.raises(ValueError, match=r"hand_made_loss.'class_weights', labels"):
        attach(model, "class_weights")
    with pytest.raises(ValueError, match="compute_loss_func="):
        attach(model, load_metric("f1"))
    with attach(model, "focal"), pytest.raises(ValueError, match="trains on 'focal' already"):
        attach(model, "poly1")
    with attach(model, "reloss/bleu"), pytest.raises(ValueError, match=r"wants logits|reads many labels"):
        model(input_ids=IDS, **CLASSES)
    assert model(input_ids=IDS, **CLASSES).loss.isfinite()
