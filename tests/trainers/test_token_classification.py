"""The program that trains taggers, on sentences whose words give their tags away."""

import json
import random
import runpy

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
)

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForTokens, load_metric

from .test_programs import BERT, TRAINERS, launch, logged, write_jsonl
from .test_text_to_text import TWO, run_program, written

TAGS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
TRAIN = (
    "--do_train --do_eval --use_cpu --learning_rate 1e-2 --per_device_train_batch_size 16 "
    "--per_device_eval_batch_size 64 --save_strategy no --train_file train.jsonl.gz --validation_file dev.jsonl"
)
MODEL = f"--model_type bert --tokenizer_name tokenizer --config_overrides {BERT}"


def sentences(count: int, seed: int) -> list[dict[str, list[str]]]:
    """Sentences of persons pb1 pi4, places lb3 li0 and other words o2, in which no tag but its kind can be told."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for kind in chance.choices(["PER", "LOC", None], k=chance.randrange(2, 6)):
            for place in range(1 if kind is None else chance.randrange(1, 3)):
                prefix = "BI"[place]
                tags.append("O" if kind is None else f"{prefix}-{kind}")
                words.append(("o" if kind is None else kind[0].lower() + prefix.lower()) + str(chance.randrange(5)))
        rows.append({"tokens": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a tokenizer that splits words and a surrogate, in which the program is run."""
    folder = tmp_path_factory.mktemp("tags")
    write_jsonl(folder / "train.jsonl.gz", sentences(200, seed=0))
    write_jsonl(folder / "dev.jsonl", sentences(41, seed=1))
    write_jsonl(folder / "odd.jsonl", [{"tokens": ["o1"], "tags": ["B-ORG"]}, *sentences(9, seed=2)])
    write_jsonl(folder / "short.jsonl", [{"tokens": ["o1", "o2"], "tags": ["O"]}, *sentences(9, seed=2)])
    write_jsonl(folder / "untagged.jsonl", [{"tokens": ["o1", "o2"], "tags": ["O", None]}, *sentences(9, seed=2)])
    write_jsonl(folder / "texts.jsonl", [{"tokens": ["o1"], "tags": "O"}])
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"opl", *(f"##{letter}" for letter in "bi01234")]
    tokenizer = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "tokenizer"
    )
    surrogate = SurrogateForTokens(SurrogateConfig(task="tokens", max_order=2))
    with torch.no_grad():
        surrogate.network.spline.log_slopes.uniform_(-0.5, 0.5)  # no longer what a fresh surrogate is
    surrogate.save_pretrained(folder / "my_surrogate")
    return folder


@pytest.fixture(scope="module")
def ce_run(folder):
    """A tagger trained from scratch on cross-entropy."""
    flags = f"{TRAIN} {MODEL} --loss ce --max_steps 60"
    return run_program(folder, "token_classification.py", flags, folder / "ce")


def tagged(place) -> tuple:
    """Outputs of a saved tagger for the validation sentences, and labels, -100 but at the first piece of a word."""
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForTokenClassification.from_pretrained(place)
    rows = []
    for row in sentences(41, seed=1):
        labels = [-100]
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            labels += [TAGS.index(tag)] + [-100] * (len(word) - 1)  # a piece for each letter
        encoded = tokenizer(" ".join(row["tokens"]), return_token_type_ids=False)
        rows.append({**encoded, "labels": [*labels, -100]})
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    with torch.no_grad():
        return model.eval()(**batch), batch["labels"]


def test_tagger_on_cross_entropy_reports_entities_and_accuracy(folder, ce_run):
    assert ce_run["state"]["global_step"] == 60
    config = json.loads((folder / "ce" / "config.json").read_text())
    assert list(config["id2label"].values()) == TAGS
    outputs, labels = tagged(folder / "ce")
    assert ce_run["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-4)
    assert ce_run["eval_accuracy"] == pytest.approx(load_metric("accuracy").compute(outputs.logits, labels))
    entities = load_metric("seqeval", label_names=TAGS).compute(outputs.logits, labels)
    assert ce_run["eval_seqeval"] == pytest.approx(entities)
    assert 0 < entities < ce_run["eval_accuracy"]


def test_auto_learns_a_surrogate_of_entities(folder, tmp_path):
    flags = f"{TRAIN} {MODEL} --loss reloss --surrogate_warmup 30 --max_steps 60"
    results = run_program(folder, "token_classification.py", flags, tmp_path)
    assert logged(results, "surrogate_alignment")[0] > 0.5
    surrogate = AutoSurrogate.from_pretrained(tmp_path / "surrogate").freeze()
    assert surrogate.config.metric.startswith("seqeval|")
    assert results["eval_loss/surrogate"] == pytest.approx(float(surrogate(*tagged(tmp_path))), rel=1e-4)
    assert results["eval_accuracy"] > 0.6


def test_saved_surrogate_fine_tunes_a_tagger(folder, ce_run, tmp_path):
    options = "--loss reloss --surrogate my_surrogate --metric accuracy --max_steps 40"
    flags = f"{TRAIN} --model_name_or_path ce {options}"
    results = run_program(folder, "token_classification.py", flags, tmp_path)
    surrogate = AutoSurrogate.from_pretrained(folder / "my_surrogate").freeze()
    assert results["eval_loss"] == pytest.approx(float(surrogate(*tagged(tmp_path))), rel=1e-4)
    assert results["eval_loss"] < float(surrogate(*tagged(folder / "ce")))
    assert "eval_seqeval" not in results


def test_evaluation_alone_takes_the_tags_of_the_checkpoint(folder, ce_run, tmp_path):
    flags = "--do_eval --model_name_or_path ce --validation_file dev.jsonl --loss ce --per_device_eval_batch_size 64"
    results = run_program(folder, "token_classification.py", flags, tmp_path)
    assert results["eval_seqeval"] == ce_run["eval_seqeval"]


def test_two_processes_tag_each_sentence_once(folder):
    flags = f"{TRAIN} {MODEL} --per_device_eval_batch_size 4 --loss reloss --surrogate my_surrogate --max_steps 20"
    run = launch(folder, "token_classification.py", f"{flags} --output_dir two", TWO)
    assert run.returncode == 0, run.stderr[-5000:]
    results = written(folder / "two")
    assert results["eval_samples"] == 41
    outputs, labels = tagged(folder / "two")
    entities = load_metric("seqeval", label_names=TAGS).compute(outputs.logits, labels)
    assert results["eval_seqeval"] == pytest.approx(entities)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_file short.jsonl", "A sentence of 2 words has 1 tags: 'o1 o2'"),
        (
            "--train_file train.jsonl.gz --validation_file odd.jsonl",
            "Unknown labels in the column 'tags': 'B-ORG', in 1",
        ),
        ("--train_file untagged.jsonl", "1 of .* examples have no label"),
        ("--train_file texts.jsonl", "wants a list of tags for each sentence, but has 'O'"),
        ("--train_file train.jsonl.gz --label_column ner_tags", "pass --label_column"),
        ("--train_file train.jsonl.gz --text_column words", "pass --text_column"),
    ],
)
def test_sentences_without_a_known_tag_for_each_word_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program(folder, "token_classification.py", f"--do_train --do_eval --loss ce {MODEL} {flags}", tmp_path)


def test_model_without_a_tokenizer_is_refused(folder, tmp_path):
    flags = "--do_train --model_type bert --train_file train.jsonl.gz"
    with pytest.raises(ValueError, match="pass --tokenizer_name"):
        run_program(folder, "token_classification.py", flags, tmp_path)


def test_tags_are_named_by_their_feature(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    program = runpy.run_path(str(TRAINERS / "token_classification.py"))
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")), ner_tags=datasets.List(datasets.ClassLabel(names=names))
    )
    rows = {"tokens": [["a", "b"], [], ["c"]], "ner_tags": [[1, 2], [], [0]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    assert program["tag_names"](data, "ner_tags") == names
    assert program["encode_tags"](data, "ner_tags", names[::-1])["labels"][:] == [[1, 0], [], [2]]
    plain = datasets.Dataset.from_dict(rows)
    assert program["tag_names"](plain, "ner_tags") == ["0", "1", "2"]
