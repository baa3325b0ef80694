"""trainers/question_answering.py, run as a user runs it, and what it reads and reads out."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hf_reloss import AutoSurrogate
from hf_reloss.surrogates.spans import SurrogateForSpans

from .test_programs import BY_LENGTH, TRAINERS, launch, write_jsonl

RUN = (
    "--do_train --do_eval --use_cpu --learning_rate 1e-2 --per_device_train_batch_size 16 --save_strategy no "
    "--model_name_or_path bert --max_seq_length 24 --doc_stride 8 --num_train_epochs 4"
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", *(f"w{index}" for index in range(30))]


def questions(count: int, seed: int, unanswered: float = 0.0) -> list[dict]:
    """Texts of up to 30 words, the answers of which are one to three words that are nothing else."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        words = [f"w{chance.randrange(20)}" for _ in range(chance.randrange(8, 28))]
        answer = " ".join(["w25", "w26", "w27"][: chance.randrange(1, 4)])
        answers = {"text": [], "answer_start": []}
        if chance.random() >= unanswered:
            words.insert(chance.randrange(len(words)), answer)
            answers = {"text": [answer], "answer_start": [" ".join(words).index(answer)]}
        rows.append({"id": str(number), "context": " ".join(words), "question": "who", "answers": answers})
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and pairs as BERT reads them."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a tiny checkpoint `bert` and a surrogate, in which the program is run."""
    folder = tmp_path_factory.mktemp("question_answering")
    write_jsonl(folder / "train.jsonl.gz", questions(160, seed=0))
    write_jsonl(folder / "dev.jsonl", questions(41, seed=1))
    write_jsonl(folder / "train_v2.jsonl", questions(160, seed=2, unanswered=0.3))
    write_jsonl(folder / "dev_v2.jsonl", questions(41, seed=3, unanswered=0.3))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder / "bert")
    tokenizer().save_pretrained(folder / "bert")
    SurrogateForSpans.for_metric("squad_f1").save_pretrained(folder / "my_surrogate")
    return folder


def run(folder: Path, flags: str, output: str, launcher: str = "") -> dict:
    """Results of a run that ended well, and as `printed` what it said."""
    ended = launch(folder, "question_answering.py", f"{RUN} {flags} --output_dir {output}", launcher)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return {**json.loads((folder / output / "all_results.json").read_text()), "printed": ended.stdout}


# Whole runs


def test_on_cross_entropy(folder):
    results = run(folder, "--train_file train.jsonl.gz --validation_file dev.jsonl --loss ce", "ce")
    assert 80 < results["eval_squad_exact_match"] <= results["eval_squad_f1"] <= 100
    assert results["train_samples"] > 160  # some texts are taken in two parts
    assert not (folder / "ce" / "surrogate").exists()


def test_auto_learns_a_surrogate_of_f1(folder):
    flags = "--train_file train.jsonl.gz --validation_file dev.jsonl --surrogate_warmup 30"
    results = run(folder, flags, "auto")
    assert "learning a surrogate of squad_f1 from" in results["printed"]
    surrogate = AutoSurrogate.from_pretrained(folder / "auto" / "surrogate")
    assert isinstance(surrogate, SurrogateForSpans)
    assert surrogate.config.metric == "squad_f1"
    assert surrogate.config.record["alignment"] > 0.5
    assert results["eval_squad_f1"] > 80


def test_two_processes_score_each_question_once_where_some_have_no_answer(folder):
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    flags = (
        "--train_file train_v2.jsonl --validation_file dev_v2.jsonl --version_2_with_negative --surrogate my_surrogate "
        f"{BY_LENGTH} --per_device_eval_batch_size 8"
    )
    results = run(folder, flags, "two", launcher)
    assert results["eval_squad_v2_f1"] > 60
    # The same model, evaluated by one process in one order, has the same answers.
    flags = flags.replace("--train_file train_v2.jsonl", "").replace("group_by_length", "random")
    ended = launch(
        folder,
        "question_answering.py",
        f"--do_eval --use_cpu --model_name_or_path two {flags} --max_seq_length 24 --doc_stride 8 --output_dir one",
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
    alone = json.loads((folder / "one" / "eval_results.json").read_text())
    for name in ("eval_squad_v2_f1", "eval_squad_v2_exact", "eval_samples"):
        assert alone[name] == pytest.approx(results[name])


# Parts


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    import answers

    return answers


def features_of(answers, rows: list[dict], **options):
    options = {"max_seq_length": 12, "doc_stride": 3} | options
    arguments = answers.QuestionDataArguments(**options)
    examples = datasets.Dataset.from_list(rows)
    return examples, answers.make_features(examples, tokenizer(), arguments), arguments


def test_positions_are_those_of_the_answer_in_the_parts_that_hold_it(answers):
    rows = questions(50, seed=5, unanswered=0.2)
    examples, features, _ = features_of(answers, rows)
    held = np.zeros(len(rows), dtype=bool)
    for feature in features:
        row = rows[feature["example"]]
        start, end = feature["start_positions"], feature["end_positions"]
        assert len(feature["input_ids"]) <= 12
        if (start, end) == (0, 0):
            continue
        held[feature["example"]] = True
        first, last = feature["offsets"][start][0], feature["offsets"][end][1]
        assert row["context"][first:last] == row["answers"]["text"][0]
    answered = np.array([bool(row["answers"]["text"]) for row in rows])
    assert (held <= answered).all()
    assert held.sum() == answered.sum()  # parts share as many tokens as the longest answer has
    assert len(features) > len(examples)


def test_answers_are_read_out_of_right_logits(answers):
    rows = questions(60, seed=6, unanswered=0.3)
    for options in ({"version_2_with_negative": True}, {}):
        examples, features, arguments = features_of(answers, rows, **options)
        logits = np.full((2, len(features), 15), -100.0, dtype=np.float32)  # padded, as Trainer does
        for row, feature in enumerate(features):
            logits[:, row, : len(feature["input_ids"])] = 0.0
            logits[0, row, feature["start_positions"]] = logits[1, row, feature["end_positions"]] = 9.0
        reader = answers.AnswerReader(examples, features, arguments)
        reader.chunk = 7
        read = reader(*logits)
        for text, row in zip(read, rows, strict=True):
            if row["answers"]["text"]:
                assert text == row["answers"]["text"][0]
            else:
                assert (text == "") == bool(options)  # without --version_2_with_negative something is always said
                assert text in row["context"]


def test_no_answer_wants_to_be_ahead_by_the_threshold(answers):
    rows = questions(1, seed=7)
    found = {}
    for threshold in (0.0, 5.0):
        options = {"version_2_with_negative": True, "null_score_diff_threshold": threshold, "max_seq_length": 32}
        examples, features, arguments = features_of(answers, rows, **options)
        logits = np.zeros((2, 1, len(features[0]["input_ids"])), dtype=np.float32)
        logits[:, 0, 0] = 1.0
        found[threshold] = answers.AnswerReader(examples, features, arguments)(*logits)[0]
    assert found[0.0] == ""
    assert found[5.0] == rows[0]["context"].split()[0]


def test_answers_are_no_longer_than_is_allowed_and_of_the_context_only(answers):
    examples, features, arguments = features_of(answers, questions(5, seed=8), max_answer_length=2, max_seq_length=32)
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits = generator.normal(size=(2, len(features), 32)).astype(np.float32)
        logits[:, :, :3] = 50.0  # [CLS], the question and [SEP] are no answers
        for text, context in zip(
            answers.AnswerReader(examples, features, arguments)(*logits), examples["context"], strict=True
        ):
            assert 1 <= len(text.split()) <= 2
            assert text in context


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_column": "query"}, "pass --question_column"),
        ({"answer_column": "label"}, "pass --answer_column"),
        ({"doc_stride": 12}, "--doc_stride 12 wants to be less than --max_seq_length, here 12"),
    ],
)
def test_contradictory_flags_and_data_are_refused(answers, change, message):
    with pytest.raises(ValueError, match=message):
        features_of(answers, questions(3, seed=9), **change)
