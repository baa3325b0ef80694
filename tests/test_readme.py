"""What the README says is so."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where its parts are
    readme = importlib.import_module("readme")
    assert readme.filled(README) == README
    assert len(re.findall(r"<!-- (?:quality|overview|transfer|alignment|speed) \w+ -->\n\|", README)) == 11


def test_its_python_snippets_run(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    from hf_reloss import load_metric

    from .conftest import TinyClassifier, tiny_rows

    monkeypatch.chdir(tmp_path)
    train, test = tiny_rows(600), tiny_rows(800, seed=1)
    metric = load_metric("accuracy")
    names = {
        "model": TinyClassifier(), "train": train, "test": test, "dataset": test, "dev": tiny_rows(100, seed=2),
        "args": TrainingArguments("out", num_train_epochs=4, per_device_train_batch_size=8, disable_tqdm=True),
        "compute_metrics": lambda result: {"accuracy": metric.compute(result.predictions, result.label_ids)},
        "batch": {"features": train[0]["features"][None], "labels": train[0]["labels"][None]},
    }  # fmt: skip
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 7
    for snippet in snippets:
        exec(snippet, names)
    assert names["trainer"].model.config.record["alignment"] > 0.5
    assert (tmp_path / "my-surrogate" / "model.safetensors").exists()
    assert (tmp_path / "my-controller" / "model.safetensors").exists()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_its_links_lead_somewhere(path):
    assert (ROOT / path).exists()
