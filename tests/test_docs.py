"""What docs/metrics.md, docs/tasks.md, docs/baselines.md and docs/hub.md say is so."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorForSeq2Seq

import hf_reloss
from hf_reloss import AutoSurrogate, hand_made_losses
from hf_reloss.metrics.loading import load_metric
from hf_reloss.predictions.groups import draw_groups

from .conftest import synthetic_predictions
from .training.test_text_trainers import make_language_model, make_tokenizer, make_translator, sentences

DOCS = Path(__file__).parents[1] / "docs"
TEXT, TASKS = ((DOCS / f"{page}.md").read_text() for page in ("metrics", "tasks"))


def test_it_names_all_hand_made_losses_with_their_options():
    table = (DOCS / "baselines.md").read_text().split("## Hand-made losses")[1].split("## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {cells[1].strip(" `"): set(re.findall(r"`(\w+)", cells[3])) for cells in rows}
    wants = {name: {"frequencies"} if loss.wants_frequencies else set() for name, loss in hand_made_losses().items()}
    assert named == {name: set(loss.options) | wants[name] for name, loss in hand_made_losses().items()}


def test_it_names_all_losses_of_embeddings_with_their_options():
    table = (DOCS / "baselines.md").read_text().split("## Metric learning")[1].split("## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {cells[1].strip(" `"): dict(re.findall(r"`(\w+)=([\d.]+)`", cells[3])) for cells in rows}
    losses = hand_made_losses("embeddings")
    assert named == {name: {key: str(value) for key, value in loss.options.items()} for name, loss in losses.items()}


def test_snippets_about_metrics_run():
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(snippet, names)
    predictions, references = np.array([3, 15, 20]), np.array([3, 16, 40])
    assert names["metric"].compute(predictions, references) == pytest.approx((1 + 1) / 3)
    within = load_metric("within_one")
    assert within.compute(predictions, references) == pytest.approx(2 / 3)
    groups = draw_groups(synthetic_predictions(), within, num_groups=20, group_size=32)
    batch = groups.__getitems__([0, 7])
    for logits, labels, score in zip(batch["logits"], batch["labels"], batch["score"], strict=True):
        near = (logits.argmax(-1) - labels).abs() <= 1
        assert near.float().mean().item() == pytest.approx(score.item())
    assert torch.equal(within.score(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.tensor([0.5, 0.75]).double())


def test_snippets_about_tasks_run(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    tokenizer, model = make_tokenizer(), make_translator()
    names = {
        "model": model, "train": sentences(400), "test": sentences(9, seed=1), "tokenizer": tokenizer,
        "collator": DataCollatorForSeq2Seq(tokenizer), "language_model": make_language_model(),
        "ids": torch.randint(4, 16, (3, 8)), "stages": [(0.0, make_translator()), (1.0, model)],
    }  # fmt: skip
    for snippet in re.findall(r"```python\n(.*?)```", TASKS, flags=re.DOTALL):
        if "setfit" not in snippet:  # which tests/training/test_setfit.py runs, where it is installed
            exec(snippet, names)
    assert names["trainer"].surrogate.config.task == "tokens"
    assert names["loss"].requires_grad
    assert names["grpo"].state.global_step == 2
    assert names["pairs"].column_names == ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert AutoSurrogate.from_pretrained("my-rouge").config.record["alignment"] > 0.5


def test_the_page_on_the_hub_names_what_comes_along():
    page = (DOCS / "hub.md").read_text()
    named = re.findall(r"^\| `reloss/([\w-]+)` \|", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(folder.name for folder in (DOCS.parent / "hub_cards").iterdir())
    loading = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    exec(loading, names := {})
    assert names["loss_function"].config.metric == "accuracy"


def test_the_tables_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))  # where its parts are
    readme = importlib.import_module("readme")
    names = ("scaling", "baselines", "decisions", "promise")
    scaling, baselines, decisions, promise = ((DOCS / f"{name}.md").read_text() for name in names)
    assert readme.filled(promise) == promise
    assert len(re.findall(r"<!-- (?:promise|tried) \w+ -->\n\|", promise)) == 8
    for page in (DOCS / "tasks").glob("*.md"):
        assert readme.filled(page.read_text()) == page.read_text(), page
    assert readme.filled(scaling) == scaling
    assert readme.filled(decisions) == decisions
    assert "<!-- decisions all -->\n|" in decisions
    assert len(re.findall(r"<!-- (?:gathered|scaling|recording) cpu -->\n\|", scaling)) == 3
    of_tokens = json.loads((DOCS.parent / "benchmarks" / "results" / "scaling_cpu.json").read_text())["bytes"]
    assert of_tokens["4"]["BLEU, 32 sentences of 40 tokens"] == 4 * 32 * 40 * (4 + 8 + 1)  # as the formula has it
    assert readme.filled(baselines) == baselines
    results = (DOCS.parent / "benchmarks" / "results").glob("baselines_*.json")
    stored = {path.stem for path in results if "scores" in json.loads(path.read_text())}
    assert {f"baselines_{task}" for task in re.findall(r"<!-- baselines (\w+) -->\n\|", baselines)} == stored


def test_the_table_of_tasks_is_what_there_is():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TASKS, flags=re.MULTILINE)
    assert all(getattr(hf_reloss, kind) is AutoSurrogate.of_task(task) for task, kind in rows)
    surrogates = {path.stem for path in (DOCS.parent / "hf_reloss" / "surrogates").glob("*.py")}
    assert {task for task, _ in rows} == {name for name in surrogates if f'task = "{name}"' in _source(name)}
    programs = re.findall(r"^\| `(trainers/\w+\.py)` \|", TASKS, flags=re.MULTILINE)
    assert len(programs) == 9
    assert all((DOCS.parent / program).is_file() for program in programs)


def _source(name: str) -> str:
    return (DOCS.parent / "hf_reloss" / "surrogates" / f"{name}.py").read_text()


@pytest.mark.parametrize(
    ("page", "least", "has_decision"),
    [("labels", 0.4, True), ("ranking", 0.9, False), ("answers", 60, False), ("embeddings", 0.5, False)],
)
def test_the_page_of_a_task_runs_as_it_stands(page, least, has_decision, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / f"{page}.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {"__name__": page})
    assert (names["trainer"].loss_report.decision is not None) == has_decision
    verdict, score = capsys.readouterr().out.splitlines()[-2:]
    assert verdict.startswith("VERDICT: trained on")
    assert float(score) > least


@pytest.mark.parametrize(
    ("page", "least", "library"),
    [("classes", 0.6, "transformers"), ("tagging", 0.6, "seqeval"), ("language", 0.7, "transformers")],
)
def test_the_page_in_the_shape_of_an_example_script_runs(page, least, library, tmp_path, monkeypatch, capsys):
    """Chance: a fourth of the choices, entities that are called "O", one masked word of thirty."""
    pytest.importorskip(library)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / f"{page}.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names["trainer"].loss_report.gain is not None
    verdict, score = capsys.readouterr().out.splitlines()[-2:]
    assert verdict.startswith("VERDICT: trained on")
    assert float(score) > least


def test_the_page_on_regression_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / "regression.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names["trainer"].loss_report.decision is not None
    verdict, score = capsys.readouterr().out.splitlines()[-2:]
    assert verdict.startswith("VERDICT: ")
    assert float(score) > 0.6


def test_the_page_on_speech_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / "speech.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names["trainer"].strategy.word == "minimum_risk"
    rates = dict(re.findall(r"^(auto|minimum_risk) ([\d.]+)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert float(rates["minimum_risk"]) < float(rates["auto"])


def test_the_page_on_texts_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    run, attach = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / "texts.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(run, names := {})
    lines = capsys.readouterr().out.splitlines()
    before, after = (float(line) for line in lines if re.fullmatch(r"[\d.]+", line))
    assert names["trainer"].loss_report.loss  # which is not the model's own
    assert before > 20
    assert (after != before) == (names["tuned"].rule is not None)
    names["trainer"].save_model("my-model")
    names["tuned"].fitted.save("my-model")  # as if it had been kept
    names["inputs"] = {"input_ids": torch.tensor([[4, 5, 6, 1]])}
    exec(attach, names)


def test_the_page_on_segmentation_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks" / "segmentation.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names["trainer"].loss_report.gain is not None
    verdict, score = capsys.readouterr().out.splitlines()[-2:]
    assert verdict.startswith("VERDICT: ")
    assert float(score) > 0.8


def test_messages_on_the_page_of_troubles_are_those_of_the_package():
    """A message may be put together from parts that stand in several lines."""
    source = "".join(path.read_text() for path in (DOCS.parent / "hf_reloss").rglob("*.py"))
    joined = re.sub(r'["\']\s*\n\s*f?["\']', "", source)
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 15
    for message in rows:
        assert message.removeprefix("VERDICT: ") in joined, message


def test_the_site_has_all_pages_and_its_reference_all_public_names():
    site = (DOCS.parent / "mkdocs.yml").read_text()
    assert set(re.findall(r": ([\w/]+\.md)$", site, flags=re.MULTILINE)) == {
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    }
    named = {
        name.rpartition(".")[2]
        for name in re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    }
    assert set(hf_reloss.__all__) <= named


def test_the_quickstart_runs_and_says_what_is_stored_in_it(tmp_path, monkeypatch, capsys):
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    stored = "".join(line for cell in cells for output in cell.get("outputs", []) for line in output["text"])
    scores = [
        [float(score) for score in re.findall(r"macro-F1 on test images: ([\d.]+)", text)]
        for text in (stored, capsys.readouterr().out)
    ]
    for usual, learned, decided in scores:
        assert min(learned, decided) > usual + 0.05
