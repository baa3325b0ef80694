"""A SetFit model with a differentiable head on a surrogate, as docs/tasks.md has it; where SetFit is installed."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from hf_reloss import AutoSurrogate, SurrogateForMultilabel, load_metric

from .test_text_trainers import make_tokenizer

setfit = pytest.importorskip("setfit")

TASKS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
TEXTS = [f"w{place} w{(place + 3) % 12}" for place in range(12)] * 2


@pytest.fixture
def arguments(tmp_path):
    return setfit.TrainingArguments(
        str(tmp_path), batch_size=8, num_epochs=(1, 4), max_steps=1, head_learning_rate=0.1, save_strategy="no",
        report_to="none", show_progress_bar=False,
    )  # fmt: skip


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes)).save_pretrained(tmp_path)
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_its_head_trains_on_a_surrogate_as_the_page_has_it(arguments, encoder, monkeypatch):
    made, given = AutoSurrogate.from_pretrained("reloss/macro-f1"), []
    monkeypatch.setattr(AutoSurrogate, "from_pretrained", lambda name: given.append(name) or made)
    made.register_forward_hook(lambda module, inputs, loss: given.append((*inputs, loss)))
    sentences = Dataset.from_dict({"text": TEXTS, "label": [place % 3 for place in range(24)]})
    (snippet,) = re.findall(r"```python\n(from setfit.*?)```", TASKS, flags=re.DOTALL)
    exec(snippet, names := {"encoder": encoder, "setfit_arguments": arguments, "sentences": sentences})
    asked, *calls = given
    assert asked == "reloss/macro-f1"
    assert [(list(logits.shape), list(labels.shape)) for logits, labels, _ in calls] == 12 * [([8, 3], [8])]
    losses = torch.stack([loss for *_, loss in calls])
    assert losses[-3:].mean() < losses[:3].mean()
    assert set(names["classifier"].predict(TEXTS).tolist()) <= {0, 1, 2}


def test_its_head_of_several_labels_trains_on_soft_macro_f1(arguments, encoder):
    model = setfit.SetFitModel.from_pretrained(
        encoder, use_differentiable_head=True, multi_target_strategy="one-vs-rest", head_params={"out_features": 2}
    )
    loss = SurrogateForMultilabel.for_metric(load_metric("f1", average="macro")).freeze()
    model.model_head.get_loss_fn = lambda: loss
    labels = [[place % 2, int(place % 12 > 5)] for place in range(24)]
    setfit.Trainer(model, arguments, train_dataset=Dataset.from_dict({"text": TEXTS, "label": labels})).train()
    with torch.no_grad():
        logits = model.model_head(torch.as_tensor(model.encode(TEXTS)))[0]
    at_random = torch.zeros_like(logits)
    assert loss(logits, torch.tensor(labels).float()) < loss(at_random, torch.tensor(labels).float())
