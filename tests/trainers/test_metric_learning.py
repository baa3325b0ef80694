"""The program that trains embeddings, on sentences and images whose classes are in part not trained on."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from hf_reloss import AutoSurrogate, load_metric

from .test_programs import TRAINERS, logged, write_jsonl
from .test_programs import folder as texts_and_images  # noqa: F401 (a fixture)
from .test_text_to_text import run_program

pytest.importorskip("pytorch_metric_learning")

CLASSES = [f"intent_{index}" for index in range(12)]
TRAIN = "--do_train --do_eval --learning_rate 1e-2 --per_device_train_batch_size 24 --save_strategy no"
TEXT = f"{TRAIN} --train_file intents.jsonl --model_name_or_path bert --embedding_size 8"
"""Six of its twelve classes are held out."""


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Each class has two words of its own, among many that say nothing."""
    chance = np.random.default_rng(seed)
    rows = []
    for label in chance.integers(0, len(CLASSES), count):
        words = [*(2 * label + chance.integers(0, 2, 2)), *chance.integers(24, 30, 5)]
        rows.append({"text": " ".join(f"w{word}" for word in chance.permutation(words)), "label": CLASSES[label]})
    return rows


@pytest.fixture(scope="module")
def folder(texts_and_images):  # noqa: F811
    """The folder of the other programs, with sentences of twelve classes."""
    write_jsonl(texts_and_images / "intents.jsonl", sentences(400, seed=0))
    write_jsonl(texts_and_images / "new.jsonl", [row for row in sentences(200, seed=1) if row["label"] > "intent_5"])
    return texts_and_images


@pytest.fixture
def load(monkeypatch):
    """Loads a model that the program has saved."""
    monkeypatch.syspath_prepend(str(TRAINERS))
    from embedder import Embedder

    return Embedder.from_pretrained


@pytest.fixture(scope="module")
def triplet_run(folder):
    flags = f"{TEXT} --loss triplet --max_steps 40"
    return run_program(folder, "metric_learning.py", flags, folder / "embeddings")


def recall(model, folder: Path, rows: list[dict[str, str]]) -> float:
    """Recall@1 of a saved model, its saved tokenizer in front of it."""
    batch = AutoTokenizer.from_pretrained(folder)([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = model.eval()(**batch).embeddings
    return load_metric("recall_at_k", k=1).compute(embeddings, [CLASSES.index(row["label"]) for row in rows])


def test_it_is_evaluated_on_the_classes_that_it_has_not_seen(folder, triplet_run, load):
    held_out = sorted(CLASSES)[6:]
    rows = [row for row in sentences(400, seed=0) if row["label"] in held_out]
    assert triplet_run["eval_samples"] == len(rows)
    assert triplet_run["train_samples"] == 400 - len(rows)
    model = load(folder / "embeddings")
    assert triplet_run["eval_recall_at_k"] == pytest.approx(recall(model, folder / "embeddings", rows), abs=1e-9)
    seen = [row for row in sentences(400, seed=0) if row["label"] not in held_out]
    assert recall(model, folder / "embeddings", seen) > 0.9  # they are told by one word in seven
    assert AutoSurrogate.from_pretrained(folder / "embeddings" / "surrogate").config.architecture == "triplet"


def test_a_controller_adapts_the_loss_by_classes_of_its_own(folder):
    flags = f'{TEXT} --loss ala --adapted_loss margin_loss --loss_options {{"beta":1.0}} --max_steps 20 --adapt_steps 5'
    results = run_program(folder, "metric_learning.py", flags, folder / "adapted")
    rows = [row["label"] for row in sentences(400, seed=0)]
    assert results["train_samples"] == sum(label in sorted(CLASSES)[:4] for label in rows)
    assert results["eval_samples"] == sum(label in sorted(CLASSES)[6:] for label in rows)
    rewards = logged(results, "adaptation/reward")
    assert len(rewards) == 3
    loss = AutoSurrogate.from_pretrained(folder / "adapted" / "surrogate")
    assert loss.config.loss_options == {"beta": 1.0}
    assert not torch.equal(loss.network.distances(), torch.tensor([0.2, 1.0]))
    assert (folder / "adapted" / "controller" / "model.safetensors").is_file()


def test_reloss_begins_on_cross_entropy_of_the_classes(folder, caplog):
    results = run_program(folder, "metric_learning.py", f"{TEXT} --loss reloss --max_steps 30", folder / "soft")
    assert results["train_samples"] > 0
    assert re.search(r"VERDICT: .*(soft metric|learned surrogate) for recall_at_k", caplog.text)


def test_a_saved_model_is_evaluated_on_data_of_other_classes(folder, tmp_path, triplet_run, load):
    data = "--validation_file new.jsonl --held_out_classes 0 --model_name_or_path embeddings"
    flags = f"--do_eval {data} --loss reloss --surrogate embeddings/surrogate"
    results = run_program(folder, "metric_learning.py", flags, tmp_path)
    rows = [row for row in sentences(200, seed=1) if row["label"] > "intent_5"]
    assert results["eval_samples"] == len(rows)
    expected = recall(load(folder / "embeddings"), folder / "embeddings", rows)
    assert results["eval_recall_at_k"] == pytest.approx(expected, abs=1e-9)


def test_images_on_cross_entropy_with_a_head(folder, load):
    chance = np.random.default_rng(0)
    labels = np.arange(160) % 4
    pixels = chance.integers(0, 100, (160, 8, 8))
    for image, label in zip(pixels, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 120
    np.savez(folder / "four.npz", images=pixels.astype(np.uint8), labels=labels)
    overrides = "num_channels=1,embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
    flags = f"{TRAIN} --train_file four.npz --image_size 16 --model_type resnet --config_overrides {overrides}"
    flags = f"{flags} --loss ce --max_steps 20"
    results = run_program(folder, "metric_learning.py", flags, folder / "bars")
    assert (results["train_samples"], results["eval_samples"]) == (80, 80)
    assert not (folder / "bars" / "surrogate").exists()
    model = load(folder / "bars").eval()
    assert model.head.out_features == 2
    processor = AutoImageProcessor.from_pretrained(folder / "bars")
    images = [Image.fromarray(image.astype(np.uint8)) for image in pixels[labels > 1]]
    with torch.no_grad():
        embeddings = model(**processor(images, return_tensors="pt")).embeddings
    expected = load_metric("recall_at_k").compute(embeddings, labels[labels > 1])
    assert results["eval_recall_at_k"] == pytest.approx(expected, abs=1e-9)


def test_batches_hold_pairs_and_each_example_once(monkeypatch):
    monkeypatch.syspath_prepend(str(TRAINERS))
    program = runpy.run_path(str(TRAINERS / "metric_learning.py"))
    labels = torch.randint(30, (500,))
    sampler = program["ClassBatches"](labels, together=4, seed=3)
    order = torch.tensor(list(sampler))
    assert torch.equal(order.sort().values, torch.arange(500))
    assert list(sampler) == order.tolist()
    same = (labels[order][1:] == labels[order][:-1]).float().mean()
    assert same > 0.6  # by chance a thirtieth
    sampler.set_epoch(1)
    assert list(sampler) != order.tolist()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--loss ala --held_out_classes 0.75", "Of 12 classes 1 would be trained on, 2 read"),
        ("--held_out_classes 0.9", "Of 12 classes 1 would be trained on, 0 read by the controller and 11 held out"),
        ('--loss_options {"gamma":1}', r"no options \['gamma'\]: there are margin"),
    ],
)
def test_contradictory_flags_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program(folder, "metric_learning.py", f"{TEXT} {flags}", tmp_path)
