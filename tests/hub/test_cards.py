"""The surrogates in hub_cards/, which come with the package."""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hf_reloss import AutoSurrogate, ReLossTrainer, load_metric
from hf_reloss.hub.pages import write_page
from hf_reloss.hub.publishing import included

from ..conftest import TinyClassifier, tiny_rows
from .runs import said
from .server import metadata_errors, validates

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "hub_cards").iterdir())
NAMES = [folder.name for folder in CARDS]

cards = pytest.mark.parametrize("folder", CARDS, ids=NAMES)


def test_there_is_one_of_each_metric():
    assert set(NAMES) == {
        *("accuracy", "macro-f1", "multilabel-f1", "quadratic-kappa"),
        *("bleu", "squad-f1", "rougeL", "pck"),
    }


def skip_other_releases(surrogate):
    """A signature names the release of sacreBLEU that scored."""
    recorded = re.search(r"sacrebleu:([\d.]+)", surrogate.config.metric)
    if recorded and recorded[1] != importlib.metadata.version("sacrebleu"):
        pytest.skip(f"It was scored by sacreBLEU {recorded[1]}.")


@cards
def test_each_is_a_whole_repository(folder):
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "alignment.png", "config.json", "model.safetensors", "recipe.yaml",
    }  # fmt: skip
    assert (folder / "model.safetensors").stat().st_size < 1_000_000
    surrogate, recipe = AutoSurrogate.from_pretrained(f"reloss/{folder.name}"), yaml.safe_load(_recipe(folder))
    skip_other_releases(surrogate)
    metric = load_metric(recipe["metric"], **recipe.get("options", {}))
    assert surrogate.config.metric == metric.signature
    assert surrogate.config.record["seed"] == recipe["seed"]
    assert surrogate.config.record["data"] == recipe["data"]


@cards
def test_each_page_is_what_its_record_says(folder, tmp_path):
    surrogate = AutoSurrogate.from_pretrained(folder)
    skip_other_releases(surrogate)
    write_page(surrogate.facts(), tmp_path, f"reloss/{folder.name}", **yaml.safe_load(_recipe(folder))["card_data"])
    page = (folder / "README.md").read_text()
    # What training gained is no part of the record; its table is written by benchmarks/readme.py.
    gained = re.search(r"## What training on it gained\n.*?(?=<!-- section details)", page, flags=re.DOTALL)[0]
    assert (tmp_path / "README.md").read_text() == page.replace(gained, "")
    write_page(surrogate.facts(), shutil.copytree(folder, tmp_path / "again"), f"reloss/{folder.name}")
    assert (tmp_path / "again" / "README.md").read_text() == page  # and it stays where it is


@cards
def test_each_page_says_what_training_on_it_gained(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    readme, page = importlib.import_module("readme"), (folder / "README.md").read_text()
    assert readme.filled(page) == page
    assert re.search(rf"<!-- gained {folder.name} -->\n\|.*\n\|.*\n\|.*\d.*\|\n", page)


def test_a_page_of_an_earlier_version_is_written_anew_in_its_place(tmp_path):
    folder = CARDS[0]
    page = (folder / "README.md").read_text()
    former = page.replace("library_name: hf-reloss", "library_name: hf_reloss").replace("# Citation", "# To cite")
    (tmp_path / "README.md").write_text(f"{former}\nMy own words.\n")
    write_page(AutoSurrogate.from_pretrained(folder).facts(), tmp_path, f"reloss/{folder.name}")
    again = (tmp_path / "README.md").read_text()
    assert ModelCard(again).data.library_name == "hf-reloss"
    assert again.count("## How to use it") == 1
    assert "# To cite" in again  # which somebody has edited
    assert again.endswith("My own words.\n")


@cards
def test_each_page_has_metadata_that_the_hub_takes(folder):
    card = ModelCard.load(folder / "README.md")
    assert metadata_errors(str(card)) == []
    assert card.data.library_name == "hf-reloss"
    assert "reloss" in card.data.tags
    (result,) = card.data.eval_results
    assert result.metric_value == AutoSurrogate.from_pretrained(folder).config.record["alignment"]


@validates
def test_the_client_validates_all_pages_and_refuses_others(hub, client, tmp_path):
    wrong = tmp_path / "README.md"
    wrong.write_text((CARDS[0] / "README.md").read_text().replace("apache-2.0", "my own"))
    code = f"""
    from huggingface_hub import ModelCard
    for page in {[str(folder / "README.md") for folder in CARDS]}:
        ModelCard.load(page).validate()
    try:
        ModelCard.load({str(wrong)!r}).validate()
    except ValueError as error:
        print(error)
    """
    assert "license: 'my own'" in said(client(code))
    assert hub.requests.count(("POST", "/api/validate-yaml")) == len(CARDS) + 1


@cards
def test_each_pages_snippet_runs_as_printed(folder):
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(snippet, names)
    assert names["loss"].isfinite()
    assert names["loss"].dim() == 0


def test_they_are_loaded_by_their_names_unless_the_hubs_are_asked_for(tmp_path, monkeypatch):
    assert included("reloss/accuracy") == ROOT / "hub_cards" / "accuracy"
    for asked in ({"revision": "main"}, {"force_download": True}):
        assert included("reloss/accuracy", **asked) is None
    for name in ("reloss/", "reloss/nothing", "reloss/..", "somebody/accuracy", "accuracy"):
        assert included(name) is None
    assert AutoSurrogate.from_pretrained("reloss/accuracy").config.origin.startswith("reloss/accuracy@hf_reloss-")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "hub_cards" / "bleu", tmp_path / "reloss" / "accuracy")
    assert AutoSurrogate.from_pretrained("reloss/accuracy").task == "tokens"  # a folder is a folder


@pytest.mark.parametrize("name", ["reloss/acuracy", "reloss/Macro_F1"])
def test_a_name_that_is_nearly_one_of_theirs_names_that(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    near = {"reloss/acuracy": "reloss/accuracy", "reloss/Macro_F1": "reloss/macro-f1"}[name]
    with pytest.raises(OSError, match=f"Is '{near}' meant"):
        AutoSurrogate.from_pretrained(name)


def test_a_trainer_takes_one_by_its_name(tmp_path):
    from transformers import TrainingArguments

    args = TrainingArguments(str(tmp_path), num_train_epochs=2, learning_rate=1e-2, disable_tqdm=True)
    trainer = ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(80), surrogate="reloss/accuracy")
    trainer.train()
    trainer = ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(80), surrogate="reloss/bleu")
    with pytest.raises(ValueError, match="A surrogate for tokens wants"):
        trainer.train()


@pytest.mark.slow
def test_one_is_made_again_from_its_recipe(tmp_path, monkeypatch):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cards as program

    folder = ROOT / "hub_cards" / "accuracy"
    program.make_card(yaml.safe_load(_recipe(folder)), tmp_path, "reloss/accuracy")
    published, again = (AutoSurrogate.from_pretrained(place) for place in (folder, tmp_path))
    margins = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(again.curve(margins), published.curve(margins), atol=0.05, rtol=0.05)
    alignments = {name for name in published.config.record if name.startswith("alignment")}
    for name in alignments:
        assert again.config.record[name] == pytest.approx(published.config.record[name], abs=0.002)
    rest = published.config.record.keys() - alignments - {"held_out", "steps"}
    assert {name: again.config.record[name] for name in rest} == {name: published.config.record[name] for name in rest}


@pytest.mark.slow
def test_the_wheel_brings_them_along(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "results", "demo"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = f"""
import hf_reloss
print(hf_reloss.__file__, *(hf_reloss.AutoSurrogate.from_pretrained("reloss/" + name).task for name in {NAMES}))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    place, *tasks = said(run).split()
    assert place.startswith(str(tmp_path / "installed"))
    assert sorted(tasks) == [
        *("classification", "classification", "keypoints", "multilabel", "regression", "spans", "tokens", "tokens")
    ]


def _recipe(folder: Path) -> str:
    return (folder / "recipe.yaml").read_text()
