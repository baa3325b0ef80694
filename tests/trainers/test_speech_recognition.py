"""The program that recognizes speech, on words of tones."""

import wave
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from hf_reloss import load_metric

from .test_programs import write_jsonl
from .test_text_to_text import run_program

TRAIN = (
    "--do_train --do_eval --train_file train.jsonl --validation_file dev.jsonl --per_device_train_batch_size 16 "
    "--save_strategy no --text_column said --logging_steps 10"
)
EVALUATE = "--do_eval --validation_file dev.jsonl --text_column said"
MODEL = (
    "--sampling_rate 4000 --config_overrides hidden_size=32,num_hidden_layers=1,num_attention_heads=2,"
    "intermediate_size=32,conv_dim=[32,32],conv_kernel=[10,4],conv_stride=[5,2],num_feat_extract_layers=2,"
    "num_conv_pos_embeddings=4,num_conv_pos_embedding_groups=2,mask_time_prob=0.0,layerdrop=0.0,hidden_dropout=0.0"
    ",feat_extract_norm=layer"
)


def record(folder: Path, name: str, number: int, seed: int, rate: int = 4_000) -> list[dict[str, str]]:
    """Recordings of letters that are tones, and spaces that are silent."""
    random, rows, time = np.random.default_rng(seed), [], np.arange(60)
    for place in range(number):
        said = "".join(random.choice(list("abc "), random.integers(2, 6))).strip() or "a"
        sound = [np.sin(time * (0.3 + 0.5 * "abc".index(x))) if x != " " else 0.0 * time for x in said]
        sound = np.concatenate(sound) + 0.2 * random.standard_normal(60 * len(said))
        path = folder / f"{name}{place}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((8_000 * sound).astype("<i2").tobytes())
        rows.append({"audio": path.name, "said": said})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    write_jsonl(folder / "train.jsonl", record(folder, "train", 120, seed=0))
    write_jsonl(folder / "dev.jsonl", record(folder, "dev", 21, seed=1))
    write_jsonl(folder / "slow.jsonl", record(folder, "slow", 3, seed=2, rate=2_000))
    return folder


@pytest.fixture(scope="module")
def ctc(folder):
    flags = f"{TRAIN} {MODEL} --loss ctc --max_steps 80 --learning_rate 5e-3"
    return run_program(folder, "speech_recognition.py", flags, folder / "ctc")


@pytest.fixture(scope="module")
def whisper(folder):
    """The flag that names a checkpoint of a tiny Whisper with fresh weights."""
    vocabulary = {token: place for place, token in enumerate(["<|endoftext|>", "Ġ", *"abc"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    extractor = WhisperFeatureExtractor(
        feature_size=8, sampling_rate=4_000, chunk_length=1, n_fft=60, hop_length=20
    )  # of 200 frames
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, num_mel_bins=8, max_source_positions=100, max_target_positions=16,
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=[],
        begin_suppress_tokens=[], init_std=0.1,
        **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in sizes.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(max_length=12, is_multilingual=False)
    model.save_pretrained(folder / "whisper")
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder / "whisper")
    return "--model_name_or_path whisper --per_device_eval_batch_size 21"


def sound_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 2**15


def transcribed(output: Path, folder: Path) -> tuple[list[str], list[str]]:
    """What a saved model transcribes of the development data, a recording at a time, and what was said."""
    model, processor = Wav2Vec2ForCTC.from_pretrained(output), AutoProcessor.from_pretrained(output)
    letters = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    texts, rows = [], record(folder, "again", 21, seed=1)
    for row in rows:
        inputs = processor(sound_of(folder / row["audio"]), sampling_rate=4_000, return_tensors="pt")
        with torch.no_grad():
            path = model.eval()(**inputs).logits[0].argmax(-1).tolist()
        texts.append("".join(letters[token] for token, _ in groupby(path) if token).replace("|", " ").strip())
    return texts, [row["said"] for row in rows]


def test_a_model_from_scratch_learns_letters_and_is_saved_with_its_processor(ctc, folder):
    assert ctc["eval_wer"] < 0.9
    assert ctc["eval_wer"] == pytest.approx(load_metric("wer").compute(*transcribed(folder / "ctc", folder)))
    assert (ctc["train_samples"], ctc["eval_samples"]) == (120, 21)


def test_minimum_risk_goes_on_from_it(ctc, folder, tmp_path):
    loss = "--loss minimum_risk --model_loss_share 0.1"
    flags = f"{TRAIN} --model_name_or_path ctc {loss} --max_steps 30 --learning_rate 2e-3"
    results = run_program(folder, "speech_recognition.py", flags, tmp_path)
    assert results["eval_wer"] < ctc["eval_wer"]
    assert any("loss/surrogate" in entry and "loss/model" in entry for entry in results["state"]["log_history"])
    again = run_program(
        folder, "speech_recognition.py", f"{EVALUATE} --model_name_or_path {tmp_path}", tmp_path / "eval"
    )
    assert again["eval_wer"] == results["eval_wer"]


def test_whisper_is_trained_on_its_own_loss_and_by_policy_gradients(whisper, folder, tmp_path):
    flags = f"{TRAIN} --loss ce --max_steps 12 --learning_rate 1e-2"
    results = run_program(folder, "speech_recognition.py", f"{flags} {whisper}", tmp_path / "own")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "own").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "own")
    rows = record(folder, "again", 21, seed=1)
    sounds = [sound_of(folder / row["audio"]) for row in rows]
    ids = model.generate(**processor(sounds, sampling_rate=4_000, return_tensors="pt"))
    texts = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert results["eval_wer"] == load_metric("wer").compute(texts, [row["said"] for row in rows])
    flags = f"{TRAIN} --loss policy --max_steps 2 --logging_steps 1 --model_name_or_path {tmp_path / 'own'}"
    results = run_program(folder, "speech_recognition.py", flags, tmp_path / "policy")
    assert sum("loss/surrogate" in entry for entry in results["state"]["log_history"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"{TRAIN} --model_name_or_path ctc --train_file slow.jsonl", "2,000 samples a second, 1 channels and 16 bits"),
        (f"{TRAIN} {MODEL} --text_column text", "no column 'text'"),
        (f"{EVALUATE} --model_name_or_path ctc --make_tokenizer", "pass --do_train"),
        (f"{TRAIN} --model_name_or_path ctc --loss reloss", "of CTC: --loss is ctc or minimum_risk or policy"),
        (f"{TRAIN} --model_name_or_path whisper --loss ctc", "is ce or reloss or minimum_risk or policy, but got ctc"),
        (f"{TRAIN} --model_name_or_path whisper --make_tokenizer", "a checkpoint that has its own tokenizer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(ctc, whisper, folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program(folder, "speech_recognition.py", flags, tmp_path)
