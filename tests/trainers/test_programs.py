"""The programs in trainers/, run as a user runs them, on tiny data."""

import csv
import gzip
import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForClassification

TRAINERS = Path(__file__).parents[2] / "trainers"
CLASSES = ("greeting", "question", "farewell")
TRAIN = "--do_train --do_eval --use_cpu --learning_rate 1e-2 --per_device_train_batch_size 16 --save_strategy no"
TEXT = f"{TRAIN} --model_name_or_path bert --train_file train.jsonl.gz --validation_file dev.jsonl"
RESNET = "--model_type resnet --config_overrides embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
BY_LENGTH = (
    "--train_sampling_strategy group_by_length"
    if hasattr(TrainingArguments, "train_sampling_strategy")
    else "--group_by_length true"  # as the first releases of transformers 5 have it
)
BERT = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"


# Data and models


def texts(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences whose words give their class away."""
    chance = random.Random(seed)
    labels = [chance.randrange(len(CLASSES)) for _ in range(count)]
    return [
        {"text": " ".join(f"w{10 * label + chance.randrange(10)}" for _ in range(5)), "label": CLASSES[label]}
        for label in labels
    ]


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise [n, 8, 8] with a bright bar at the place of its class [n]."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, len(CLASSES), count)
    pixels = chance.integers(0, 100, (count, 8, 8))
    for image, label in zip(pixels, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return pixels.astype(np.uint8), labels


def write_jsonl(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a tiny checkpoint `bert` and a surrogate, in which the programs are run."""
    folder = tmp_path_factory.mktemp("programs")
    write_jsonl(folder / "train.jsonl.gz", texts(192, seed=0))
    write_jsonl(folder / "dev.jsonl", texts(60, seed=1))
    write_jsonl(folder / "odd.jsonl", [*texts(9, seed=2), {"text": "w1 w2", "label": "oddity"}])
    write_jsonl(folder / "unlabelled.jsonl", [*texts(9, seed=2), {"text": "w1 w2", "label": None}])
    write_jsonl(folder / "one_class.jsonl", [{"text": "w1", "label": "greeting"}] * 2)
    (folder / "hub_like").mkdir()
    with (folder / "hub_like" / "train.csv").open("w", newline="") as file:
        rows = [{"sentence": row["text"], "code": 5 * CLASSES.index(row["label"])} for row in texts(200, seed=3)]
        writer = csv.DictWriter(file, ["sentence", "code"])
        writer.writeheader()
        writer.writerows(rows)

    for name, count, seed in (("train", 96, 0), ("dev", 40, 1)):
        pixels, labels = images(count, seed)
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            if name == "dev" and CLASSES[label] == "farewell":
                continue  # the folder of the first class, in alphabetical order, is missing
            path = folder / "photos" / name / CLASSES[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

    words = ["[PAD]", "[UNK]", *(f"w{index}" for index in range(30))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "bert"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)).save_pretrained(folder / "bert")
    surrogate = SurrogateForClassification(SurrogateConfig())
    with torch.no_grad():
        surrogate.network.spline.log_slopes.uniform_(-0.5, 0.5)  # no longer what a fresh surrogate is
    surrogate.save_pretrained(folder / "my_surrogate")
    return folder


# Whole runs


def launch(folder: Path, program: str, flags: str, launcher: str = "") -> subprocess.CompletedProcess:
    """Runs a program in the folder, in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache")}
    command = [sys.executable, *launcher.split(), str(TRAINERS / program), *flags.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def results_of(run: subprocess.CompletedProcess, output: Path) -> dict:
    """What a program that ended well has written: its results, and as `state` the trainer's."""
    assert run.returncode == 0, run.stderr[-5000:]
    results = json.loads((output / "all_results.json").read_text())
    assert 0 <= results["eval_accuracy"] <= 1
    assert {"train_loss", "eval_loss"} <= results.keys()
    return {**results, "state": json.loads((output / "trainer_state.json").read_text())}


def logged(results: dict, key: str) -> list[float]:
    return [entry[key] for entry in results["state"]["log_history"] if key in entry]


@pytest.fixture(scope="module")
def auto_run(folder):
    """24 steps of text classification, the first 8 on cross-entropy, with a checkpoint after 12."""
    flags = f"{TEXT} --surrogate_warmup 8 --num_train_epochs 2 --save_strategy steps --save_steps 12 --output_dir auto"
    run = launch(folder, "text_classification.py", flags)
    return {**results_of(run, folder / "auto"), "printed": run.stdout}


@pytest.fixture(scope="module")
def image_run(folder):
    """A resnet trained from scratch on cross-entropy."""
    files = "--image_size 16 --train_file train.npz --validation_file dev.npz"
    flags = f"{TRAIN} {RESNET} {files} --loss ce --max_steps 30 --output_dir images"
    return results_of(launch(folder, "image_classification.py", flags), folder / "images")


def test_text_auto_learns_a_surrogate_and_saves_it(folder, auto_run):
    assert auto_run["state"]["global_step"] == 24
    assert auto_run["eval_samples"] == 60
    assert logged(auto_run, "surrogate_alignment")[0] > 0.5
    assert "learning a surrogate of accuracy from 160 predictions" in auto_run["printed"]
    assert AutoSurrogate.from_pretrained(folder / "auto" / "surrogate").config.metric == "accuracy"
    assert auto_run["eval_accuracy"] > 0.6
    config = json.loads((folder / "auto" / "config.json").read_text())
    assert config["id2label"] == {"0": "farewell", "1": "greeting", "2": "question"}


def test_resumed_run_ends_where_the_uninterrupted_one_did(folder, auto_run):
    flags = f"{TEXT} --surrogate_warmup 8 --num_train_epochs 2 --output_dir resumed"
    run = launch(folder, "text_classification.py", f"{flags} --resume_from_checkpoint auto/checkpoint-12")
    resumed = results_of(run, folder / "resumed")
    assert "learning a surrogate" not in run.stdout  # it went on from the checkpoint, and not from the start
    assert resumed["state"]["global_step"] == 24
    assert resumed["eval_loss"] == pytest.approx(auto_run["eval_loss"], rel=1e-5)
    for name in ("model.safetensors", "surrogate/model.safetensors"):
        torch.testing.assert_close(load_file(folder / "resumed" / name), load_file(folder / "auto" / name))


@pytest.mark.parametrize("loss", ["ala", "class_weights"])
def test_baselines_are_trained_on_by_the_same_flag(folder, loss):
    data = "--dataset_name hub_like --text_column sentence --label_column code"
    model = f"--model_type bert --config_overrides {BERT} --tokenizer_name bert"
    flags = f"{TRAIN} {data} {model} --loss {loss} --adapt_steps 5 --max_steps 12 --output_dir {loss}"
    results = results_of(launch(folder, "text_classification.py", flags), folder / loss)
    assert results["state"]["global_step"] == 12
    architecture = {"ala": "class_correlation"}.get(loss, loss)
    assert json.loads((folder / loss / "surrogate" / "config.json").read_text())["architecture"] == architecture
    assert (folder / loss / "controller").exists() == (loss == "ala")


def test_text_from_scratch_on_cross_entropy_holds_out_validation_data(folder):
    data = "--dataset_name hub_like --text_column sentence --label_column code --max_train_samples 100"
    model = f"--model_type bert --config_overrides {BERT} --tokenizer_name bert"
    flags = f"{TRAIN} {data} {model} --loss ce --max_steps 5 --output_dir ce"
    results = results_of(launch(folder, "text_classification.py", flags), folder / "ce")
    assert (results["train_samples"], results["eval_samples"]) == (100, 30)
    assert results["state"]["global_step"] == 5
    assert not (folder / "ce" / "surrogate").exists()
    config = json.loads((folder / "ce" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "5", "2": "10"}  # integers in their own order
    assert (config["hidden_size"], config["vocab_size"], config["pad_token_id"]) == (16, 32, 0)


def test_two_processes_learn_one_surrogate(folder):
    launcher = (
        f"-m accelerate.commands.launch --config_file {TRAINERS / 'accelerate' / 'cpu.yaml'} --main_process_port 0"
    )
    flags = f"{TEXT} --metric accuracy --surrogate_warmup 4 --num_train_epochs 2 --output_dir two"
    run = launch(folder, "text_classification.py", flags, launcher)
    results = results_of(run, folder / "two")
    assert results["state"]["global_step"] == 12  # 192 examples twice, 16 for each of two processes
    assert results["eval_samples"] == 60
    assert run.stdout.count("learning a surrogate of accuracy from 160 predictions") == 1  # 4 steps, of both processes
    assert AutoSurrogate.from_pretrained(folder / "two" / "surrogate").config.metric == "accuracy"
    assert 0 <= results["eval_accuracy"] <= 1


@pytest.mark.parametrize("path", sorted((TRAINERS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_each_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    kinds = {"cpu": "MULTI_GPU", "multi_gpu": "MULTI_GPU", "bf16": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]


def test_unknown_label_is_an_error_that_names_it(folder):
    data = "--train_file train.jsonl.gz --validation_file odd.jsonl"
    run = launch(folder, "text_classification.py", f"{TRAIN} {data} --model_name_or_path bert --output_dir odd")
    assert run.returncode != 0
    assert "ValueError: Unknown labels in the column 'label': 'oddity', in 1 of 10 examples" in run.stderr
    assert "farewell, greeting, question" in run.stderr


def image_loss(model_folder: Path, pixels: list[np.ndarray], labels: list[int], loss) -> float:
    """The loss of a saved model, its saved image processor in front of it."""
    model = AutoModelForImageClassification.from_pretrained(model_folder).eval()
    processor = AutoImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        inputs = processor([Image.fromarray(image).convert("RGB") for image in pixels], return_tensors="pt")
        return float(loss(model(**inputs).logits, torch.tensor(labels)))


def test_images_on_cross_entropy(folder, image_run):
    assert image_run["state"]["global_step"] == 30
    assert image_run["eval_samples"] == 40
    assert image_run["eval_accuracy"] > 0.6
    assert not (folder / "images" / "surrogate").exists()
    pixels, labels = images(40, seed=1)
    expected = image_loss(folder / "images", list(pixels), labels.tolist(), F.cross_entropy)
    assert image_run["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_images_on_a_saved_surrogate_from_a_checkpoint(folder, image_run):
    data = "--train_file photos/train --validation_file photos/dev --model_name_or_path images"
    flags = f"{TRAIN} {data} --loss reloss --surrogate my_surrogate --max_steps 4 --output_dir finetuned"
    results = results_of(launch(folder, "image_classification.py", flags), folder / "finetuned")
    assert results["state"]["global_step"] == 4
    torch.testing.assert_close(
        load_file(folder / "finetuned" / "surrogate" / "model.safetensors"),
        load_file(folder / "my_surrogate" / "model.safetensors"),
    )
    # The validation folder lacks a class, and labels are the model's all the same.
    names = sorted(CLASSES)
    files = sorted((folder / "photos" / "dev").glob("*/*.png"))
    pixels = [np.asarray(Image.open(file)) for file in files]
    labels = [names.index(file.parent.name) for file in files]
    assert set(labels) == {1, 2}
    assert results["eval_samples"] == len(files)
    surrogate = AutoSurrogate.from_pretrained(folder / "my_surrogate")
    expected = image_loss(folder / "finetuned", pixels, labels, surrogate)
    assert results["eval_loss"] == pytest.approx(expected, rel=1e-4)


# What needs no process of its own, and costs little


@pytest.fixture
def run_here(folder, tmp_path, monkeypatch):
    """Runs a program in this process, and returns its output folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(TRAINERS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache" / "datasets")

    def run(program: str, flags: str) -> Path:
        monkeypatch.setattr(sys, "argv", [program, *flags.split(), "--use_cpu", "--output_dir", str(tmp_path)])
        runpy.run_path(str(TRAINERS / program), run_name="__main__")
        return tmp_path

    return run


def test_evaluation_alone_takes_the_classes_of_the_checkpoint(run_here, auto_run):
    flags = "--do_eval --model_name_or_path auto --validation_file dev.jsonl --surrogate auto/surrogate"
    results = json.loads((run_here("text_classification.py", flags) / "eval_results.json").read_text())
    assert results["eval_accuracy"] == auto_run["eval_accuracy"]
    assert results["eval_loss"] == pytest.approx(auto_run["eval_loss/surrogate"], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_file train.jsonl.gz --model_name_or_path bert", "pass --do_train"),
        ("--do_train --model_name_or_path bert", "either --dataset_name or --train_file"),
        ("--do_train --dataset_name x --train_file train.jsonl.gz", "either --dataset_name or --train_file"),
        ("--do_train --train_file train.txt --model_name_or_path bert", "neither a csv, a json nor a jsonl"),
        ("--do_train --validation_file dev.jsonl --model_name_or_path bert", "no split 'train'"),
        ("--do_eval --validation_file dev.jsonl --model_type bert", "wants a trained model"),
        ("--do_train --train_file train.jsonl.gz --label_column intent", "pass --label_column"),
        ("--do_train --train_file train.jsonl.gz --text_column words --model_name_or_path bert", "pass --text_column"),
        ("--do_train --train_file unlabelled.jsonl", "1 of 10 examples have no label"),
        ("--do_train --train_file one_class.jsonl", "one class only"),
        ("--do_train --train_file train.jsonl.gz --model_type bert", "pass --tokenizer_name"),
        ("--do_train --train_file train.jsonl.gz --tokenizer_name bert", "one of --model_name_or_path"),
        (
            "--do_train --train_file train.jsonl.gz --model_name_or_path bert --config_overrides hidden_size=8",
            "for models from scratch",
        ),
        (
            "--do_train --train_file train.jsonl.gz --config_name bert --config_overrides hidden_sise=8",
            "BertConfig has no hidden_sise",
        ),
        (
            "--do_train --train_file train.jsonl.gz --config_name bert --config_overrides hidden_size",
            "name=value,name=value, but got 'hidden_size'",
        ),
        (
            "--do_train --train_file train.jsonl.gz --model_name_or_path bert --loss ce --resume_from_checkpoint True",
            "No valid checkpoint found in output directory",
        ),
    ],
)
def test_contradictory_flags_and_data_are_refused(run_here, flags, message):
    with pytest.raises(ValueError, match=message):
        run_here("text_classification.py", flags)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 8, 8), np.uint8)}, r"holds \['x'\]"),
        ({"images": np.zeros((2, 8, 8)), "labels": np.arange(2)}, "float64"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.arange(3)}, r"\[2, 8, 8\] and \[3\]"),
    ],
)
def test_npz_files_of_another_layout_are_refused(folder, run_here, arrays, message):
    np.savez(folder / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        run_here("image_classification.py", "--do_train --model_type resnet --train_file wrong.npz")


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_of_the_model(folder, run_here, shape, channels):
    np.savez(folder / "shape.npz", images=np.full(shape, 255, np.uint8), labels=np.arange(6) % 2)
    overrides = f"num_channels={channels},embedding_size=8,hidden_sizes=[8],depths=[1],layer_type=basic"
    train = "--do_train --loss ce --max_steps 1 --save_strategy no --train_file shape.npz"
    output = run_here(
        "image_classification.py", f"{train} --image_size 16 --model_type resnet --config_overrides {overrides}"
    )
    weights = load_file(output / "model.safetensors")
    assert weights["resnet.embedder.embedder.convolution.weight"].shape[1] == channels
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16}
    assert processor["image_mean"] == [0.5] * channels


def test_labels_go_by_their_names(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    from common import class_names, encode_labels

    def labelled(names: list[str], labels: list[int]) -> datasets.Dataset:
        features = datasets.Features(text=datasets.Value("string"), labels=datasets.ClassLabel(names=names))
        return datasets.Dataset.from_dict({"text": ["w1"] * len(labels), "labels": labels}, features=features)

    train = labelled(["cat", "ant", "bee"], [0, 1])
    names = class_names(train, "labels")
    assert names == ["cat", "ant", "bee"]
    assert encode_labels(train, "labels", names)["labels"][:] == [0, 1]
    assert encode_labels(labelled(["bee", "cat"], [0, 1, 0]), "labels", names)["labels"][:] == [2, 0, 2]
    with pytest.raises(ValueError, match="1 of 2 examples have no label"):
        encode_labels(labelled(["bee", "cat"], [0, -1]), "labels", names)


def test_config_overrides_are_json_or_strings(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    from common import parse_overrides

    assert parse_overrides("depths=[1,2],hidden_act=gelu, use_cache=true,layer_norm_eps=1e-5") == {
        "depths": [1, 2],
        "hidden_act": "gelu",
        "use_cache": True,
        "layer_norm_eps": 1e-5,
    }
    assert parse_overrides("") == {}
