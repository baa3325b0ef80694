"""The programs that translate and summarize, on tiny languages that are translated word by word."""

import json
import random
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForTokens, load_metric

from .test_programs import BY_LENGTH, TRAINERS, launch, logged, write_jsonl

if str(TRAINERS) not in sys.path:
    sys.path.append(str(TRAINERS))

from bag_of_ngrams import bag_of_ngrams_loss
from text_to_text import train_tokenizer

TRAIN = (
    "--do_train --do_eval --use_cpu --learning_rate 1e-2 --per_device_train_batch_size 16 "
    "--per_device_eval_batch_size 64 --save_strategy no --max_target_length 20"
)
FILES = "--train_file train.jsonl.gz --validation_file dev.jsonl"
WORDS = f"{TRAIN} {FILES} --source_lang en --target_lang de"
T5 = "--vocab_size 300 --config_overrides d_model=32,d_kv=8,d_ff=64,num_layers=1,num_heads=4"
NAT = (
    "--vocab_size 300 --architecture nat --config_overrides "
    "d_model=32,encoder_layers=1,decoder_layers=1,num_attention_heads=2,ffn_dim=64,max_position_embeddings=64"
)
SUMMARIES = (
    f"{TRAIN} --train_file papers.jsonl --validation_file papers_dev.jsonl --text_column source "
    "--summary_column summaries"
)
TWO = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences of words w0 to w11, whose translations are v0 to v11."""
    chance = random.Random(seed)
    numbers = [[chance.randrange(12) for _ in range(chance.randrange(2, 7))] for _ in range(count)]
    return [{"en": " ".join(f"w{n}" for n in row), "de": " ".join(f"v{n}" for n in row)} for row in numbers]


def papers(count: int, seed: int, references: int) -> list[dict[str, list[str]]]:
    """Papers of two sentences, of which the first is the first summary and the second another."""
    firsts, seconds = sentences(count, seed), sentences(count, seed + 100)
    return [
        {"source": [first["en"], second["en"]], "summaries": [first["en"], second["en"]][:references]}
        for first, second in zip(firsts, seconds, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and a surrogate, in which the programs are run."""
    folder = tmp_path_factory.mktemp("text_to_text")
    write_jsonl(folder / "train.jsonl.gz", sentences(200, seed=0))
    write_jsonl(folder / "dev.jsonl", sentences(41, seed=1))
    (folder / "hub_like").mkdir()
    write_jsonl(folder / "hub_like" / "train.jsonl", [{"translation": row} for row in sentences(40, seed=2)])
    write_jsonl(folder / "papers.jsonl", papers(100, seed=3, references=1))
    write_jsonl(folder / "papers_dev.jsonl", papers(21, seed=4, references=2))
    write_jsonl(folder / "no_summary.jsonl", [*papers(3, seed=5, references=1), {"source": ["w1"], "summaries": []}])
    surrogate = SurrogateForTokens(SurrogateConfig(task="tokens"))
    with torch.no_grad():
        surrogate.network.spline.log_slopes.uniform_(-0.5, 0.5)  # no longer what a fresh surrogate is
    surrogate.save_pretrained(folder / "my_surrogate")
    return folder


def run_program(folder: Path, program: str, flags: str, output: Path) -> dict:
    """Runs a program in this process, and returns its results and, as `state`, the trainer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(TRAINERS)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache" / "datasets")
        patch.setattr(sys, "argv", [program, *flags.split(), "--use_cpu", "--output_dir", str(output)])
        runpy.run_path(str(TRAINERS / program), run_name="__main__")
    return written(output)


def written(output: Path) -> dict:
    """What a program has written."""
    results = json.loads((output / "all_results.json").read_text())
    state = output / "trainer_state.json"
    return {**results, "state": json.loads(state.read_text()) if state.is_file() else None}


class Saved:
    """A saved model with its tokenizer, and what it makes of texts."""

    def __init__(self, output: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(output)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(output).eval()

    @torch.no_grad()
    def write(self, texts: list[str], **options) -> list[str]:
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt")
        ids = self.model.generate(**inputs, max_length=21, **options)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def outputs(self, sources: list[str], targets: list[str]) -> tuple:
        """Of all examples in one batch, with their labels."""
        encoded = self.tokenizer(sources) | {"labels": self.tokenizer(targets)["input_ids"]}
        rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        batch = DataCollatorForSeq2Seq(self.tokenizer, model=self.model)(rows)
        return self.model(**batch), batch["labels"]


def columns(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [row["en"] for row in rows], [row["de"] for row in rows]


SOURCES, TARGETS = columns(sentences(41, seed=1))


# Translation


@pytest.fixture(scope="module")
def teacher(folder):
    """A T5 trained from scratch on smoothed cross-entropy, evaluated with two beams."""
    options = f"--loss ce --label_smoothing_factor 0.1 {BY_LENGTH}"
    flags = f"{WORDS} {T5} {options} --max_steps 150 --generation_num_beams 2"
    return run_program(folder, "translation.py", flags, folder / "teacher")


@pytest.fixture(scope="module")
def nat_run(folder, teacher):
    """A transformer without autoregression, trained on smoothed cross-entropy and the teacher's translations."""
    flags = f"{WORDS} {NAT} --loss ce --label_smoothing_factor 0.1 --max_steps 40 --distill teacher"
    return run_program(folder, "translation.py", f"{flags} --generation_num_beams 3", folder / "nat")


def test_translation_on_cross_entropy_reports_what_the_saved_model_generates(folder, teacher):
    assert teacher["state"]["global_step"] == 150
    assert teacher["eval_samples"] == 41
    saved = Saved(folder / "teacher")
    assert saved.model.config.model_type == "t5"
    assert saved.tokenizer("w1 w2")["input_ids"][-1] == saved.model.config.eos_token_id
    score = load_metric("sacrebleu").compute(saved.write(SOURCES, num_beams=2), TARGETS)
    assert teacher["eval_sacrebleu"] == pytest.approx(score)
    outputs, labels = saved.outputs(SOURCES, TARGETS)
    expected = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert teacher["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_teachers_translations_are_trained_on_and_kept(folder, nat_run):
    (kept,) = (folder / "nat").glob("_distilled_*.json")
    sources, targets = columns(sentences(200, seed=0))
    made = json.loads(kept.read_text())
    assert made == Saved(folder / "teacher").write(sources, num_beams=3)
    assert made != targets


def test_model_without_autoregression_learns_tokens_and_lengths(folder, nat_run):
    saved = Saved(folder / "nat")
    outputs, labels = saved.outputs(SOURCES, TARGETS)
    tokens = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert nat_run["eval_loss"] == pytest.approx(float(tokens + outputs.auxiliary_loss), rel=1e-4)
    assert outputs.auxiliary_loss < 0.25  # 0.42 at the start, of 65 lengths
    assert nat_run["eval_sacrebleu"] == pytest.approx(load_metric("sacrebleu").compute(saved.write(SOURCES), TARGETS))


def test_kept_translations_are_read_and_not_made_again(folder, nat_run, monkeypatch):
    program = runpy.run_path(str(TRAINERS / "translation.py"))
    parse = program["make_parser"]().parse_args_into_dataclasses
    flags = "--use_cpu --generation_num_beams 3 --max_target_length 20 --distill nowhere"

    def distilled(output: str, sources: list[str]) -> list[str]:
        data_args, _, args = parse([*flags.split(), "--output_dir", output])
        data = datasets.Dataset.from_dict({"source": sources, "target": [""] * len(sources)})
        return program["distilled"](data, data_args, args)["target"][:]

    made = []

    def translate(sources, *settings):
        made.append(settings[:3])
        return [source.upper() for source in sources]

    monkeypatch.setitem(program["distilled"].__globals__, "translations", translate)
    output = str(folder / "kept")
    for _ in range(2):
        assert distilled(output, ["a", "b"]) == ["A", "B"]
    assert made == [("nowhere", 3, (128, 20))]
    assert distilled(output, ["c"]) == ["C"]  # other sources are other translations
    assert len(made) == 2


def test_bag_of_ngrams_fine_tunes_a_model_without_autoregression(folder, nat_run, tmp_path):
    flags = f"{WORDS} --model_name_or_path nat --loss bag_of_ngrams --max_steps 20"
    results = run_program(folder, "translation.py", flags, tmp_path)
    outputs, labels = Saved(tmp_path).outputs(SOURCES, TARGETS)
    expected = bag_of_ngrams_loss(outputs.logits, labels) + outputs.auxiliary_loss
    assert results["eval_loss"] == pytest.approx(float(expected), rel=1e-4)
    before, labels = Saved(folder / "nat").outputs(SOURCES, TARGETS)
    assert bag_of_ngrams_loss(outputs.logits, labels) < bag_of_ngrams_loss(before.logits, labels)


def test_auto_learns_a_surrogate_of_bleu_with_which_a_model_learns_to_translate(folder, tmp_path):
    results = run_program(folder, "translation.py", f"{WORDS} {NAT} --loss reloss --max_steps 40", tmp_path)
    assert logged(results, "surrogate_alignment")[0] > 0.5
    surrogate = AutoSurrogate.from_pretrained(tmp_path / "surrogate").freeze()
    assert surrogate.config.metric.startswith("sacrebleu")
    assert results["eval_sacrebleu"] > 50
    outputs, labels = Saved(tmp_path).outputs(SOURCES, TARGETS)
    assert results["eval_loss/surrogate"] == pytest.approx(float(surrogate(outputs, labels)), rel=1e-3)


def test_saved_surrogate_fine_tunes_an_autoregressive_model(folder, teacher, tmp_path):
    options = "--loss reloss --surrogate my_surrogate --metric chrf --max_steps 5"
    flags = f"{WORDS} --model_name_or_path teacher {options} --learning_rate 1e-4"
    results = run_program(folder, "translation.py", flags, tmp_path)
    torch.testing.assert_close(
        load_file(tmp_path / "surrogate" / "model.safetensors"),
        load_file(folder / "my_surrogate" / "model.safetensors"),
    )
    saved = Saved(tmp_path)
    loss = AutoSurrogate.from_pretrained(folder / "my_surrogate").freeze()(*saved.outputs(SOURCES, TARGETS))
    assert results["eval_loss/surrogate"] == pytest.approx(float(loss), rel=1e-4)
    assert results["eval_chrf"] == pytest.approx(load_metric("chrf").compute(saved.write(SOURCES), TARGETS))


@pytest.mark.parametrize("loss", ["minimum_risk --risk_alpha 0.5", "policy --risk_temperature 1"])
def test_what_it_writes_fine_tunes_an_autoregressive_model(folder, teacher, tmp_path, loss):
    options = f"--loss {loss} --metric chrf --risk_candidates 6 --max_steps 5"
    flags = f"{WORDS} --model_name_or_path teacher {options} --learning_rate 1e-4"
    results = run_program(folder, "translation.py", flags, tmp_path)
    assert not (tmp_path / "surrogate").exists()
    saved = Saved(tmp_path)
    outputs, _ = saved.outputs(SOURCES, TARGETS)
    assert results["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-4)
    assert results["eval_chrf"] == pytest.approx(load_metric("chrf").compute(saved.write(SOURCES), TARGETS))
    before, _ = Saved(folder / "teacher").outputs(SOURCES, TARGETS)
    assert not torch.equal(outputs.logits, before.logits)


def test_translations_of_the_hub_are_dicts_of_which_some_are_held_out(folder, tmp_path):
    data = "--dataset_name hub_like --source_lang de --target_lang en"
    flags = f"{TRAIN} {data} --tokenizer_name teacher {T5} --loss ce --max_steps 2"
    results = run_program(folder, "translation.py", flags, tmp_path)
    assert (results["train_samples"], results["eval_samples"]) == (34, 6)


def test_evaluation_alone_gives_the_score_of_training(folder, teacher, tmp_path):
    flags = "--do_eval --model_name_or_path teacher --validation_file dev.jsonl --source_lang en --target_lang de"
    options = "--loss ce --generation_num_beams 2 --max_target_length 20"
    results = run_program(folder, "translation.py", f"{flags} {options}", tmp_path)
    assert results["eval_sacrebleu"] == teacher["eval_sacrebleu"]


def test_two_processes_share_out_distillation_and_score_each_sentence_once(folder, teacher):
    options = "--per_device_eval_batch_size 4 --loss reloss --surrogate my_surrogate --max_steps 10"
    flags = f"{WORDS} {NAT} {options} --distill teacher"
    run = launch(folder, "translation.py", f"{flags} --output_dir two", TWO)
    assert run.returncode == 0, run.stderr[-5000:]
    results = written(folder / "two")
    (kept,) = (folder / "two").glob("_distilled_*.json")
    sources, _ = columns(sentences(200, seed=0))
    assert json.loads(kept.read_text()) == Saved(folder / "teacher").write(sources, num_beams=4)
    assert run.stdout.count("200 translations by teacher are kept") == 1
    assert "25/25" in run.stderr  # batches of 4 sentences: half of them
    assert results["eval_samples"] == 41
    saved = Saved(folder / "two")
    assert results["eval_sacrebleu"] == pytest.approx(load_metric("sacrebleu").compute(saved.write(SOURCES), TARGETS))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--do_train --train_file train.jsonl.gz --source_lang en", "Pass the languages"),
        ("--do_train --train_file train.jsonl.gz --source_lang en --target_lang fr", "pass --target_lang"),
        ("--do_train --train_file train.txt --source_lang en --target_lang de", "neither a csv, a json nor a jsonl"),
        ("--do_eval --validation_file dev.jsonl --source_lang en --target_lang de", "wants a trained model"),
        (f"{WORDS} {T5} --loss bag_of_ngrams", "this is T5ForConditionalGeneration: pass --architecture nat"),
        (f"{WORDS} {NAT} --loss bag_of_ngrams --label_smoothing_factor 0.1", "leave it out with --loss bag_of_ngrams"),
        (f"{WORDS} {NAT} --loss minimum_risk", "token by token, but this is NatForTranslation"),
        (f"{WORDS} {T5} --metric bleurt", "Unknown metric 'bleurt'"),
    ],
)
def test_contradictory_flags_of_translation_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program(folder, "translation.py", flags, tmp_path)


# Summarization


def best_of_each(saved: Saved, metric: str) -> float:
    rows = papers(21, seed=4, references=2)
    written = saved.write([" ".join(row["source"]) for row in rows])
    return load_metric(metric).compute(written, [row["summaries"] for row in rows])


def test_summaries_are_judged_by_all_references(folder, tmp_path):
    results = run_program(folder, "summarization.py", f"{SUMMARIES} {T5} --loss ce --max_steps 150", tmp_path)
    saved = Saved(tmp_path)
    assert results["eval_rougeL"] == pytest.approx(best_of_each(saved, "rougeL"))
    firsts = [row["summaries"][0] for row in papers(21, seed=4, references=2)]
    sources = [" ".join(row["source"]) for row in papers(21, seed=4, references=2)]
    assert results["eval_rougeL"] > load_metric("rougeL").compute(saved.write(sources), firsts) > 0
    outputs, _ = saved.outputs(sources, firsts)
    assert results["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-4)


def test_metric_of_one_reference_gets_the_first(folder, tmp_path):
    options = "--loss reloss --surrogate my_surrogate --metric wer --max_steps 2"
    results = run_program(folder, "summarization.py", f"{SUMMARIES} {T5} {options}", tmp_path)
    rows = papers(21, seed=4, references=2)
    written = Saved(tmp_path).write([" ".join(row["source"]) for row in rows])
    assert results["eval_wer"] == load_metric("wer").compute(written, [row["summaries"][0] for row in rows])


def test_a_summarizer_that_is_not_fitted_yet_keeps_its_own_loss(folder, tmp_path):
    options = "--loss reloss --surrogate_warmup 60 --max_steps 70 --source_prefix w1"
    results = run_program(folder, "summarization.py", f"{SUMMARIES} {T5} {options}", tmp_path)
    assert not (tmp_path / "surrogate").exists()
    rows = papers(21, seed=4, references=2)
    sources = ["w1" + " ".join(row["source"]) for row in rows]
    outputs, _ = Saved(tmp_path).outputs(sources, [row["summaries"][0] for row in rows])
    assert results["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-4)


def test_two_processes_summarize(folder):
    flags = f"{SUMMARIES} {T5} --per_device_eval_batch_size 4 --loss ce --max_steps 30 --output_dir two_summaries"
    run = launch(folder, "summarization.py", flags, TWO)
    assert run.returncode == 0, run.stderr[-5000:]
    results = written(folder / "two_summaries")
    assert results["eval_rougeL"] == pytest.approx(best_of_each(Saved(folder / "two_summaries"), "rougeL"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--do_train --train_file no_summary.jsonl", "has no summary of"),
        ("--do_train --train_file papers.jsonl --text_column paper", "pass --text_column"),
        ("--do_train --train_file papers.jsonl --summary_column tldr", "pass --summary_column"),
    ],
)
def test_data_without_documents_or_summaries_are_refused(folder, tmp_path, flags, message):
    flags = f"--text_column source --summary_column summaries {flags}"
    with pytest.raises(ValueError, match=message):
        run_program(folder, "summarization.py", flags, tmp_path)


# The tokenizer


@pytest.mark.parametrize("text", ["w1 w2", "Ein Mädchen, das lacht.", "日本語 😀", "  two  spaces", ""])
def test_trained_tokenizer_knows_all_texts_and_is_the_same_when_loaded(tmp_path, text):
    tokenizer = train_tokenizer((f"number {n} of {n * n}" for n in range(100)), 270)
    assert len(tokenizer) == 270
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == tokenizer(text)
