"""Models that were trained on a surrogate from the Hub: what they remember of it, and what their pages say."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_reloss import AutoSurrogate

from .runs import said

TRAINED = """
import sys
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from hf_reloss import ReLossTrainer, ReLossTrainingArguments

surrogate, folder, steps, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
torch.manual_seed(0)
config = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=5,
    max_position_embeddings=8,
)
rows = [{"input_ids": torch.randint(30, (8,)), "labels": torch.tensor(i % 5)} for i in range(64)]
args = ReLossTrainingArguments(
    folder, max_steps=8, save_steps=4, per_device_train_batch_size=8, learning_rate=1e-2, disable_tqdm=True, seed=1,
    model_loss_share=0.25, hub_model_id="me/model",
)
trainer = ReLossTrainer(BertForSequenceClassification(config), args, train_dataset=rows, surrogate=surrogate)
if steps < 8:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= steps

    trainer.add_callback(Stop())
trainer.train(resume_from_checkpoint=resume)
print("WEIGHTS", *(weight.double().sum().item().hex() for weight in trainer.model.state_dict().values()))
print("ORIGIN", trainer.surrogate.config.origin)
"""


def told(run, word: str) -> str:
    (line,) = [line for line in said(run).splitlines() if line.startswith(word)]
    return line.removeprefix(word).strip()


@pytest.fixture
def twice_published(hub, folder, client, tmp_path):
    """Publishes a surrogate, and gives a function that publishes other weights under its name."""
    said(client("reloss", "push", str(folder), "me/it"))
    first = hub.repos["me/it"].branches["main"]

    def again() -> str:
        surrogate = AutoSurrogate.from_pretrained(folder)
        for parameter in surrogate.parameters():
            parameter.data += 1.0
        surrogate.save_pretrained(tmp_path / "other")
        said(client("reloss", "push", str(tmp_path / "other"), "me/it"))
        return hub.repos["me/it"].branches["main"]

    return first, again


def test_a_resumed_run_goes_on_with_the_weights_it_began_with(hub, client, twice_published, tmp_path):
    first, publish_again = twice_published
    whole = client(TRAINED, "me/it", str(tmp_path / "whole"), "8", "")
    assert told(whole, "ORIGIN") == f"me/it@{first}"
    client(TRAINED, "me/it", str(tmp_path / "broken"), "4", "")
    second = publish_again()
    assert second != first
    resumed = client(TRAINED, "me/it", str(tmp_path / "broken"), "8", "resume")
    assert told(resumed, "WEIGHTS") == told(whole, "WEIGHTS")
    assert told(resumed, "ORIGIN") == f"me/it@{first}"
    anew = client(TRAINED, "me/it", str(tmp_path / "anew"), "8", "")
    assert told(anew, "ORIGIN") == f"me/it@{second}"
    assert told(anew, "WEIGHTS") != told(whole, "WEIGHTS")


def test_another_surrogate_that_is_asked_for_is_taken(client, twice_published, tmp_path):
    client(TRAINED, "me/it", str(tmp_path / "out"), "4", "")
    resumed = client(TRAINED, "reloss/accuracy", str(tmp_path / "out"), "8", "resume")
    assert told(resumed, "ORIGIN").startswith("reloss/accuracy@hf_reloss-")


def test_the_page_of_a_trained_model_says_which_surrogate_it_was(hub, client, twice_published, tmp_path):
    first, _ = twice_published
    said(client(f"{TRAINED}\ntrainer.push_to_hub()", "me/it", str(tmp_path / "out"), "8", ""))
    files = hub.repos["me/model"].files("main")
    page = files["README.md"].decode()
    assert f"[me/it](https://huggingface.co/me/it), revision `{first}`" in page
    for words in ("`accuracy|normalize:True`", "0.9000", "25 % of the loss was the model's own", "learning_rate: 0.01"):
        assert words in page
    card = ModelCard(page)
    assert card.data.library_name == "transformers"
    assert "hf-reloss" in card.data.tags
    assert "reloss" not in card.data.tags  # which is for surrogates
    assert json.loads(files["surrogate/config.json"])["origin"] == f"me/it@{first}"
    load = 'import hf_reloss; print(hf_reloss.AutoSurrogate.from_pretrained("me/model", subfolder="surrogate").task)'
    assert said(client(load)) == "classification"
