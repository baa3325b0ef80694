"""What the README says is so, and so do the pages that it sends readers to."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, TRAINER, RESULTS, CHOOSING = (
    (ROOT / page).read_text() for page in ("README.md", "docs/trainer.md", "docs/results.md", "docs/choosing.md")
)


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_its_figures_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where its parts are
    readme = importlib.import_module("readme")
    assert readme.filled(README) == README
    assert readme.filled(RESULTS) == RESULTS
    assert re.search(r"<!-- headlines README -->\n- \*\*Not worse", README)
    kinds = "first_runs|unfitted|quality|overview|transfer|alignment|speed|metric_speed"
    assert len(re.findall(rf"<!-- (?:{kinds}) \w+ -->\n\|", RESULTS)) == 15


def test_it_is_read_in_a_few_minutes():
    assert 700 <= len(README.split()) <= 900


def test_its_script_says_what_is_printed_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(snippets(README)[0], {})
    printed = re.search(r"```\n(VERDICT: .*?)```", README, flags=re.DOTALL)[1]
    said = capsys.readouterr().out.splitlines()[-1]
    # What is learned in 10 seconds, and of how many examples, goes with the machine.
    gain = r"\(no harm seen in its first steps: ([+-][\d.]+) \[.*\], \d+ examples\)"
    form = r"VERDICT: trained on the [\w ]+ for accuracy " + gain
    assert all(float(re.match(form, text)[1]) > 0 for text in (said, printed))
    assert said.endswith("(accuracy on eval_dataset)")


def test_snippets_on_the_trainer_run(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    from hf_reloss import load_metric

    from .conftest import TinyClassifier, tiny_rows

    monkeypatch.chdir(tmp_path)
    train, test = tiny_rows(600), tiny_rows(800, seed=1)
    metric = load_metric("accuracy")
    names = {
        "model": TinyClassifier(), "train": train, "dev": test, "dataset": test,
        "compute_metrics": lambda result: {"accuracy": metric.compute(result.predictions, result.label_ids)},
        "batch": {"features": train[0]["features"][None], "labels": train[0]["labels"][None]},
    }  # fmt: skip
    names["args"] = TrainingArguments("out", max_steps=8, eval_strategy="steps", eval_steps=4, disable_tqdm=True)
    exec(snippets(CHOOSING)[0], names)
    assert names["monitor"].verdict.startswith("Loss and accuracy")
    names["args"] = TrainingArguments("out", num_train_epochs=4, per_device_train_batch_size=8, disable_tqdm=True)
    for snippet in (*snippets(TRAINER), snippets(README)[1]):
        exec(snippet, names)
    assert (tmp_path / "my-model" / "surrogate").is_dir()
    assert names["trainer"].model.config.record["alignment"] > 0.5
    assert (tmp_path / "my-surrogate" / "model.safetensors").exists()
    assert (tmp_path / "my-controller" / "model.safetensors").exists()
    assert names["loss"].requires_grad


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, anchor in re.findall(r"\]\((?!http|mailto)([^)#\s]*)(?:#([^)]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], anchor
