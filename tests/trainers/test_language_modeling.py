"""The program that trains causal language models, on a tiny language in which an answer names the last word."""

import gzip
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_reloss import AutoSurrogate, load_metric

from .test_programs import TRAINERS, logged, write_jsonl
from .test_text_to_text import run_program

PROGRAM = "language_modeling.py"
TRAIN = (
    "--do_train --do_eval --learning_rate 1e-2 --per_device_train_batch_size 16 --per_device_eval_batch_size 8 "
    "--save_strategy no"
)
ANSWERS = (
    "--train_file train.jsonl.gz --validation_file dev.jsonl --prompt_column question --answer_column answer "
    "--max_answer_length 8"
)
SIZES = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2,intermediate_size=64"
LLAMA = f"--tokenizer_name tokenizer --model_type llama --config_overrides {SIZES}"
GPT2 = "--config_overrides n_embd=32,n_layer=1,n_head=2,n_positions=32"


def questions(count: int, seed: int) -> list[dict[str, str]]:
    """Questions of words w0 to w11, of which one of ten has any other answer than the name of the last, v0 to v11."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        numbers = [chance.randrange(12) for _ in range(chance.randrange(1, 6))]
        named = numbers[-1] if chance.random() < 0.9 else chance.randrange(12)
        rows.append({"question": " ".join(f"w{n}" for n in numbers), "answer": f"v{named} v{(named + 1) % 12}"})
    return rows


DEV = questions(41, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and a tokenizer of words, in which the program is run."""
    folder = tmp_path_factory.mktemp("language")
    write_jsonl(folder / "train.jsonl.gz", questions(200, seed=0))
    write_jsonl(folder / "dev.jsonl", DEV)
    write_jsonl(folder / "unanswered.jsonl", [*questions(3, seed=2), {"question": "w1", "answer": None}])
    for name, rows in (("train", questions(300, seed=3)), ("dev", DEV)):
        (folder / f"{name}.txt").write_text("".join(f"{row['question']} {row['answer']}\n" for row in rows))
    words = ["<pad>", "</s>", "<unk>", *(f"{letter}{n}" for letter in "wv" for n in range(12))]
    tokens = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(folder / "tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>").save_pretrained(folder / "endless")
    return folder


@pytest.fixture(scope="module")
def answering(folder):
    """A model that is trained from scratch on the usual loss, to answer."""
    return run_program(folder, PROGRAM, f"{TRAIN} {ANSWERS} {LLAMA} --loss ce --max_steps 100", folder / "answering")


class Saved:
    """A saved model with its tokenizer, and what it makes of one text at a time."""

    def __init__(self, output: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(output)
        self.model = AutoModelForCausalLM.from_pretrained(output).eval()

    def write(self, prompt: str) -> str:
        ids, length = self._ids(prompt), len(self._ids(prompt))
        while len(ids) < length + 8 and ids[-1] != self.tokenizer.eos_token_id:
            ids.append(int(self.logits(ids)[-1].argmax()))
        return self.tokenizer.decode(ids[length:], skip_special_tokens=True)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0]

    def likelihoods(self, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token of an answer and its end: the loss, and whether it is the likeliest."""
        first, ids = self._ids(prompt), [*self._ids(answer), self.tokenizer.eos_token_id]
        logits, labels = self.logits(first + ids)[len(first) - 1 : -1], torch.tensor(ids)
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text)["input_ids"]
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids  # as those that are trained here have it


def assert_as_written(results: dict, output: Path, name: str) -> None:
    saved = Saved(output)
    losses, right = map(torch.cat, zip(*(saved.likelihoods(**_pair(row)) for row in DEV), strict=True))
    assert results["eval_perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-4)
    assert results["eval_accuracy"] == pytest.approx(float(right.float().mean()))
    written = [saved.write(row["question"]) for row in DEV]
    score = load_metric(name).compute(written, [row["answer"] for row in DEV])
    assert results[f"eval_{name}"] == pytest.approx(score)


def _pair(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": row["question"], "answer": row["answer"]}


def test_answers_are_written_after_prompts_and_scored(folder, answering):
    assert answering["eval_samples"] == 41
    assert_as_written(answering, folder / "answering", "rougeL")
    assert answering["eval_rougeL"] > 0.6


def test_evaluation_alone_takes_another_metric_and_fewer_examples_in_a_batch(folder, answering, tmp_path):
    flags = f"--do_eval --model_name_or_path answering {ANSWERS} --per_device_eval_batch_size 5 --metric exact_match"
    results = run_program(folder, PROGRAM, flags, tmp_path)
    assert_as_written(results, folder / "answering", "exact_match")
    assert results["eval_perplexity"] == pytest.approx(answering["eval_perplexity"], rel=1e-5)


def test_positions_of_a_gpt2_with_a_tokenizer_of_its_own_are_counted_from_its_prompts(folder, tmp_path):
    flags = f"{TRAIN} {ANSWERS} {GPT2} --vocab_size 300 --loss focal --max_steps 60"
    results = run_program(folder, PROGRAM, flags, tmp_path)
    assert_as_written(results, tmp_path, "rougeL")
    assert results["eval_loss/surrogate"] < results["eval_loss"]


def test_auto_learns_a_surrogate_by_the_command_of_the_page(folder, tmp_path):
    page = (TRAINERS.parent / "docs" / "tasks" / "language.md").read_text()
    (command,) = re.findall(r"reloss train language_modeling ((?:.*\\\n)*.*)", page)
    assert "--output_dir out" in command
    flags = command.replace("\\\n", " ").replace("--output_dir out", "--train_file train.jsonl.gz")
    flags = re.sub(r"--model_name_or_path \S+", f"{TRAIN} --max_answer_length 8 {LLAMA}", flags)
    results = run_program(folder, PROGRAM, f"{flags} --surrogate_warmup 60 --max_steps 120", tmp_path)
    assert AutoSurrogate.from_pretrained(tmp_path / "surrogate").config.metric.startswith("rougeL")
    assert logged(results, "surrogate_alignment")[0] > 0.5
    assert_as_written(results, tmp_path, "rougeL")


def test_policy_trains_on_answers_that_the_model_writes(folder, answering, tmp_path):
    flags = f"{TRAIN} --learning_rate 1e-3 {ANSWERS} --model_name_or_path answering --loss policy --metric exact_match"
    results = run_program(folder, PROGRAM, f"{flags} --max_steps 4 --logging_steps 2", tmp_path)
    assert len(logged(results, "texts/risk")) == 2
    assert 0 < logged(results, "texts/risk")[0] < 1
    assert_as_written(results, tmp_path, "exact_match")


def blocks(texts: list[str], tokenizer, size: int) -> torch.Tensor:
    ids = torch.tensor([token for text in texts for token in tokenizer(text)["input_ids"]])
    return ids[: len(ids) // size * size].view(-1, size)


def assert_of_blocks(results: dict, output: Path, texts: list[str], size: int) -> None:
    saved = Saved(output)
    rows = blocks(texts, saved.tokenizer, size)
    assert results["eval_samples"] == len(rows)
    logits = torch.stack([saved.logits(row.tolist())[:-1] for row in rows])
    loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:])
    assert results["eval_perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert results["eval_accuracy"] == pytest.approx(float((logits.argmax(-1) == rows[:, 1:]).float().mean()))


def test_texts_are_divided_into_blocks(folder, tmp_path):
    flags = f"{TRAIN} --train_file train.txt --validation_file dev.txt --block_size 16 {LLAMA}"
    results = run_program(folder, PROGRAM, f"{flags} --loss ce --metric perplexity --max_steps 20", tmp_path)
    assert_of_blocks(results, tmp_path, (folder / "dev.txt").read_text().splitlines(), 16)


@pytest.mark.skipif("HF_RELOSS_DATA" not in os.environ, reason="HF_RELOSS_DATA is not set")
def test_auto_stays_on_the_models_own_loss_on_real_texts(folder, tmp_path):
    source = Path(os.environ["HF_RELOSS_DATA"]) / "multi30k_en_de"
    found = {}
    for name, most in (("train", 800), ("dev", 100)):
        with gzip.open(source / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            found[name] = [json.loads(line) for _, line in zip(range(most), file, strict=False)]
        write_jsonl(folder / f"{name}_captions.jsonl", found[name])
    data = "--train_file train_captions.jsonl --validation_file dev_captions.jsonl --text_column en --block_size 32"
    results = run_program(folder, PROGRAM, f"{TRAIN} {data} {GPT2} --vocab_size 400 --max_steps 60", tmp_path)
    assert_of_blocks(results, tmp_path, [row["en"] for row in found["dev"]], 32)
    assert results["eval_perplexity"] < 200  # of 400 tokens
    assert not (tmp_path / "surrogate").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_file train.jsonl.gz", "no column 'text', but .*'question', 'answer'.*: pass --text_column"),
        ("--train_file train.jsonl.gz --prompt_column question", "pass both --prompt_column and --answer_column"),
        (f"{ANSWERS} --answer_column target", "pass --answer_column"),
        (f"{ANSWERS} --train_file unanswered.jsonl", "1 of 4 examples have no text in the column 'answer'"),
        (
            f"{ANSWERS} --block_size 8 {LLAMA}",
            "All 200 prompts are longer than 0 tokens, which .* leaves of 8",
        ),
        (f"{ANSWERS} --tokenizer_name endless", "no eos_token"),
        (f"{ANSWERS} --metric ece", "does not score these"),
        (f"{ANSWERS} --loss policy --metric accuracy {LLAMA}", "'accuracy'"),
        (f"--train_file train.txt --block_size 5000 {LLAMA}", "300 texts have fewer tokens than a block"),
        ("--train_file train.txt --metric bleu", "--metric bleu is for what the model writes: pass --prompt_column"),
        ("--train_file train.txt --loss policy", "--loss policy is for what the model writes: pass --prompt_column"),
        ("--train_file train.md", "neither a csv, a json nor a jsonl file"),
    ],
)
def test_contradictory_flags_and_data_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program(folder, PROGRAM, f"--do_train {flags}", tmp_path)


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(folder, answering, tmp_path, caplog):
    flags = f"--do_eval --model_name_or_path answering {ANSWERS} --block_size 11"
    results = run_program(folder, PROGRAM, flags, tmp_path)
    assert results["eval_samples"] == sum(len(row["question"].split()) <= 3 for row in DEV) < 41
    assert f"{41 - results['eval_samples']} of 41 prompts are left out" in caplog.text
