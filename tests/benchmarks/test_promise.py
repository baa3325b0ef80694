"""The stored results of benchmarks/promise.py keep the promise, and its pairs are what they say."""

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STORED = json.loads((BENCHMARKS / "results" / "promise.json").read_text())


@pytest.mark.parametrize("way", ["auto", "auto, strict"])
def test_no_pair_of_data_and_metric_loses(way):
    below = {pair for pair, gains in STORED["over_usual"].items() if gains[way]["high"] < 0}
    assert not below


def test_what_is_compared_is_what_was_run():
    for pair, gains in STORED["over_usual"].items():
        for way, gain in gains.items():
            runs = {
                key: measured[way]
                for key, measured in STORED["runs"].items()
                if key.startswith(f"{pair}, ") and way in measured
            }
            usual = [measured["usual"] for key, measured in STORED["runs"].items() if key.startswith(f"{pair}, usual,")]
            assert gain["pairs"] == len(runs) == len(usual) >= 3
            assert gain["mean"] == pytest.approx(sum(runs.values()) / len(runs) - sum(usual) / len(usual))


def test_each_run_of_auto_has_a_verdict_and_costs_no_more_than_it_may():
    for key, measured in STORED["runs"].items():
        if ", auto" in key:
            assert measured["verdict"].startswith("VERDICT: "), key
            assert measured["cost"] <= (1.61 if "strict" in key else 1.08), key


@pytest.mark.parametrize("name", ["digits_slowly", "fashion_rare"])
def test_the_parts_of_a_pair_share_no_example(name, program):
    try:
        pair = program("pairs").CLASS_PAIRS[name]()
    except SystemExit:
        pytest.skip("HF_RELOSS_DATA is not set")
    parts = (pair.train, pair.development, pair.test)
    seen = [{part[i]["pixel_values"].numpy().tobytes() for i in range(len(part))} for part in parts]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(seen[one] & seen[other]) <= 0.001 * len(seen[other])  # the data hold few images twice
    labels = torch.stack([pair.test[i]["labels"] for i in range(len(pair.test))])
    assert len(labels.unique()) >= 2


def test_slots_of_a_sentence_become_tags_of_its_words(program):
    row = {"annotated": "set [time : six am] alarm for [person : ann's ] [date:today]"}
    assert program("task_pairs")._slots(row) == (
        ["set", "six", "am", "alarm", "for", "ann's", "today"],
        ["O", "B-time", "I-time", "O", "O", "B-person", "B-date"],
    )


def test_tags_stand_at_the_first_token_of_each_word(program):
    try:
        pair = program("task_pairs").hwu64_slots()
    except SystemExit:
        pytest.skip("HF_RELOSS_DATA is not set")
    tokenizer = pair.options["processing_class"]
    for row in pair.train.select(range(50)):
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        words = [i for i, token in enumerate(tokens) if token[:2] != "##" and token not in ("[CLS]", "[SEP]")]
        tagged = [i for i, tag in enumerate(row["labels"]) if tag != -100]
        assert set(tagged) <= set(words)  # punctuation is a token, and no word, of its own
    assert pair.train[0]["labels"] != pair.development[0]["labels"]
