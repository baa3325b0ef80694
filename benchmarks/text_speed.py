"""A training step of a translator on what it writes itself, against one on its own loss; rows of speed.py."""

import tempfile
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_reloss import ReLossSeq2SeqTrainer, ReLossSeq2SeqTrainingArguments

VOCABULARY, SENTENCES, TOKENS = 4_000, 64, 15

SIZES = {"d_model": 160, "encoder_layers": 2, "decoder_layers": 2}
HEADS = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
FEED_FORWARD = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 480)

WORDS = ("policy", "minimum_risk")
"""Ways to train on what is written."""


def stepper(surrogate: str | None, device: str) -> Callable[[], None]:
    """Takes a training step of a transformer of 2 + 2 layers, on sentences of 15 of its 4,000 words.

    Args:
        surrogate: one of `WORDS`, which draws 4 texts for each source; None for cross-entropy.
        device: "cpu" or "cuda".
    """
    torch.manual_seed(0)
    words = {word: place for place, word in enumerate(["<pad>", "<unk>", "</s>", *map(str, range(3, VOCABULARY))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, bos_token_id=None,
            forced_eos_token_id=None, max_position_embeddings=2 * TOKENS, **SIZES, **HEADS, **FEED_FORWARD,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = None  # each text is as long as the references, trained model or not
    settings = {"use_cpu": device == "cpu", "disable_tqdm": True, "generation_max_length": TOKENS + 1}
    folder = tempfile.mkdtemp()
    if surrogate is None:
        trainer = Seq2SeqTrainer(model, Seq2SeqTrainingArguments(folder, **settings))
    else:
        args = ReLossSeq2SeqTrainingArguments(folder, **settings)
        trainer = ReLossSeq2SeqTrainer(
            model, args, processing_class=tokenizer, surrogate=surrogate, metric="sacrebleu", guard=False
        )
    trainer.pop_callback(PrinterCallback)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.randint(3, VOCABULARY, (SENTENCES, TOKENS), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step() -> None:
        trainer.training_step(trainer.model, dict(batch))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def measures(device: str, in_turns: Callable[..., dict[str, float]]) -> dict[str, Callable[[], dict[str, float]]]:
    """What `speed.py` measures of training on what a model writes."""
    what = f"step of a translator, {SENTENCES} × {TOKENS} tokens, on 4 texts of its own each"
    return {
        f"{what} ({word}), against its own loss": lambda word=word: in_turns(
            stepper(word, device), stepper(None, device)
        )
        for word in WORDS
    }
