"""What decodes texts: a tokenizer, a processor that has one, or the collator's."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SequenceFeatureExtractor,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
)

from hf_reloss import ReLossSeq2SeqTrainer, ReLossSeq2SeqTrainingArguments
from hf_reloss.predictions.models import tokenizer_of


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(20))])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


class Processor(ProcessorMixin):
    """As those of speech and images: it decodes, and has a tokenizer."""

    def __init__(self, tokenizer=None):
        super().__init__(tokenizer)


def test_a_tokenizer_is_found_wherever_a_script_has_it():
    words, extractor = tokenizer(), SequenceFeatureExtractor(feature_size=1, sampling_rate=8_000, padding_value=0.0)
    processor = Processor(words)
    seq2seq = DataCollatorForSeq2Seq(words)
    for given, collator in ((words, None), (processor, None), (extractor, seq2seq), (None, seq2seq)):
        assert tokenizer_of(given, collator) is words
    assert tokenizer_of(extractor, default_data_collator) is None


@pytest.mark.parametrize("surrogate", ["auto", "minimum_risk"])
def test_a_processor_decodes_by_its_tokenizer(tmp_path, surrogate):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=23, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    )
    rows = [{"input_ids": torch.arange(4, 12), "labels": (torch.arange(4, 12) + i) % 20 + 3} for i in range(40)]
    args = ReLossSeq2SeqTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True
    )
    trainer = ReLossSeq2SeqTrainer(
        model, args, train_dataset=rows, data_collator=default_data_collator, processing_class=Processor(tokenizer()),
        surrogate=surrogate, metric="wer",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3
    if surrogate == "auto":
        assert 0 < trainer.strategy.recording.score(trainer.metric, trainer.strategy.recorder.rows()) < 10
