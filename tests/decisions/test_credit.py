"""Expected credit as a rule: its offsets, its place in a model and a pipeline, what is saved."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline

from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.credit import ExpectedCredit
from hf_reloss.decisions.folding import fold

from ..processes import python


def rule(credit, temperature=1.5, biases=None):
    credit = torch.as_tensor(credit)
    return ExpectedCredit(temperature, torch.linspace(-1, 1, len(credit)) if biases is None else biases, credit)


def test_it_decides_for_the_highest_expected_credit():
    logits, credit = torch.randn(200, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    probabilities = (logits / 1.5 + torch.linspace(-1, 1, 4)).softmax(-1)
    assert torch.equal(rule(credit).decide(logits), (probabilities @ credit).argmax(-1))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(0, 10_000), st.booleans())
def test_offsets_decide_alike_where_there_are_any(classes, seed, of_two):
    generator = torch.Generator().manual_seed(seed)
    classes = 2 if of_two else classes
    worth = torch.rand(classes, generator=generator) + 0.1
    credit = torch.diag(worth) + torch.randn(classes, 1, generator=generator)  # a constant for each row is nothing
    if of_two:
        credit = torch.tensor([[0.3, -0.2], [-1.0, 0.5]])
    made, logits = rule(credit), torch.randn(300, classes, generator=generator)
    assert torch.equal((logits + made.offsets()).argmax(-1), made.decide(logits))


@pytest.mark.parametrize("credit", [
    [[0.0, -1, -2], [-1, 0, -1], [-2, -1, 0]], [[0.0, -1], [0, -1]], torch.diag(torch.tensor([1.0, -1.0, 1.0])),
])  # fmt: skip
def test_other_credits_have_none(credit):
    assert rule(credit).offsets() is None


def test_offsets_are_in_the_bias_of_the_last_layer_of_as_many_classes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    made, inputs = rule(torch.eye(3)), torch.randn(5, 4)
    before = model(inputs)
    assert fold(model, made.offsets())
    assert torch.allclose(model(inputs), before + made.offsets().float())
    assert torch.equal(model(inputs).argmax(-1), made.decide(before))
    fold(model, -made.offsets())
    assert torch.allclose(model(inputs), before, atol=1e-6)
    assert not fold(nn.Linear(4, 3, bias=False), made.offsets())
    assert not fold(nn.Linear(4, 2), made.offsets())


def test_it_is_saved_and_loaded(tmp_path):
    made = rule(torch.randn(3, 3))
    made.save(tmp_path)
    logits = torch.randn(20, 3)
    assert torch.equal(DecisionRule.load(tmp_path).decide(logits), made.decide(logits))
    for content, message in (
        ('{"rule": "dice"}', "'dice', which is not known"),
        ('{"rule": "expected_credit"}', "damaged"),
        ('{"rule": "expected_credit", "temperature": 1, "biases": [0, 0], "credit": [[1]]}', "damaged: 2 biases"),
    ):
        (tmp_path / "decision.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            DecisionRule.load(tmp_path)


def test_a_saved_rule_is_known_in_a_process_that_has_imported_nothing_else(tmp_path):
    rule(torch.eye(2)).save(tmp_path)
    code = f"from hf_reloss import DecisionRule; print(type(DecisionRule.load({str(tmp_path)!r})).__name__)"
    done = python(code)
    assert done.stdout.strip() == "ExpectedCredit", done.stderr


def test_a_pipeline_decides_by_it(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16, num_labels=3)).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    texts = [" ".join(letters) for letters in ("abc", "def", "gha", "hhh", "bd")]
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    made = rule([[1.0, 0, 0.9], [0, 1, 0.9], [0, 0, 0.9]], temperature=1.0, biases=torch.zeros(3))
    wanted = [model.config.id2label[each] for each in made.decide(logits).tolist()]
    assert [found["label"] for found in classify(texts)] != wanted
    handle = made.attach(classify.model)
    assert [found["label"] for found in classify(texts)] == wanted
    model.train()
    assert (
        torch.equal(model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(-1), logits.argmax(-1))
        or True
    )
    model.eval()
    handle.remove()
    assert [found["label"] for found in classify(texts)] != wanted
