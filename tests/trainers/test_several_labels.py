"""Text classification where each text has several labels, or none."""

import json
import runpy

import datasets
import pytest

from .test_programs import TRAIN, TRAINERS, folder, launch, texts, write_jsonl

__all__ = ["folder"]  # a fixture


def test_texts_with_lists_of_labels_have_several(folder):
    rows = [
        {"text": row["text"], "label": [] if row["label"] == "farewell" else [row["label"], "any"]}
        for row in texts(160, 3)
    ]
    write_jsonl(folder / "several.jsonl", rows)
    files = "--model_name_or_path bert --train_file several.jsonl --validation_file several.jsonl"
    flags = (
        f'{TRAIN} {files} --metric f1 --metric_options {{"average":"macro"}} --num_train_epochs 4 --output_dir several'
    )
    run = launch(folder, "text_classification.py", flags)
    assert run.returncode == 0, run.stderr[-5000:]
    results = json.loads((folder / "several" / "all_results.json").read_text())
    assert results["eval_f1"] > 0.6
    assert 0 <= results["eval_subset_accuracy"] <= 1
    config = json.loads((folder / "several" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "any", "1": "greeting", "2": "question"}


def test_labels_with_decimals_are_numbers_of_pairs_of_texts(folder):
    rows = [
        {"text": row["text"], "beside": other["text"], "score": 0.5 + 2.0 * (row["label"] == other["label"])}
        for row, other in zip(texts(240, 3), texts(240, 4), strict=True)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    files = "--model_name_or_path bert --train_file pairs.jsonl --validation_file pairs.jsonl"
    columns = "--text_pair_column beside --label_column score"
    run = launch(folder, "text_classification.py", f"{TRAIN} {files} {columns} --num_train_epochs 1 --output_dir score")
    assert run.returncode == 0, run.stderr[-5000:]
    results = json.loads((folder / "score" / "all_results.json").read_text())
    assert -1 <= results["eval_pearsonr"] <= 1
    assert results["eval_mae"] < 1.5
    config = json.loads((folder / "score" / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "score"})


def test_numbers_that_are_missing_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    encode = runpy.run_path(str(TRAINERS / "text_classification.py"))["encode"]
    data = datasets.Dataset.from_dict({"score": [1.5, None, 2.0]})
    with pytest.raises(ValueError, match="1 of 3 examples have no number in the column 'score', but None: leave them"):
        encode(data, "score", ["score"])
    whole = datasets.Dataset.from_dict({"score": [1, 2, 3]})  # of a model that puts out one number
    assert encode(whole, "score", ["score"])["labels"][:] == [1.0, 2.0, 3.0]
