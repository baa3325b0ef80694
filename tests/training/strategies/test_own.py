"""Ways to train that are defined outside of the package."""

import torch
import torch.nn.functional as F
from transformers import BertConfig

from hf_reloss import LossDescription, LossStrategy, ReLossTrainer, ReLossTrainingArguments, StrategyLoss

from ...conftest import TinyClassifier, tiny_rows


class Annealed(LossStrategy):
    """From cross-entropy to that of half of the logits, whose share grows step by step; it is saved, and goes on."""

    word = "annealed"

    def start(self, checkpoint):
        self.share = 0.0 if checkpoint is None else float((checkpoint / "share.txt").read_text())
        self.shares = []

    def loss(self, batch, outputs):
        one = F.cross_entropy(outputs.logits, batch.labels)
        two = F.cross_entropy(outputs.logits / 2, batch.labels)
        return StrategyLoss(batch.weights.of_parts * ((1 - self.share) * one + self.share * two), outputs)

    def end_step(self):
        self.shares.append(self.share)
        self.share += 0.1

    def save_state(self, checkpoint):
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "share.txt").write_text(str(self.share))

    def describe(self):
        return LossDescription("annealed cross-entropy", sentence="on annealed cross-entropy")


def made(folder, surrogate):
    args = ReLossTrainingArguments(
        str(folder), per_device_train_batch_size=8, max_steps=10, save_steps=5, learning_rate=0.1, use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(80), surrogate=surrogate)


def test_one_is_found_by_its_word_trained_saved_and_resumed(tmp_path):
    whole = made(tmp_path / "whole", "annealed")
    whole.train()
    assert [round(share, 1) for share in whole.strategy.shares] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    resumed = made(tmp_path / "resumed", Annealed())
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.strategy.shares == whole.strategy.shares[5:]
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    resumed.model.config = BertConfig()  # which Trainer reads for the page
    resumed.create_model_card()
    assert (
        "This model was trained with `hf_reloss` on annealed cross-entropy."
        in (tmp_path / "resumed" / "README.md").read_text()
    )
