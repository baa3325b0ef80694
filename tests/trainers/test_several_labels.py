"""Text classification where each text has several labels, or none."""

import json

from .test_programs import TRAIN, folder, launch, texts, write_jsonl

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
