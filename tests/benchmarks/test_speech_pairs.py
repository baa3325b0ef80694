"""The stored results of benchmarks/speech_pairs.py are those of its runs, and its Whisper reads what it says."""

import json
import os

import pytest
import torch

from .conftest import BENCHMARKS

STORED = json.loads((BENCHMARKS / "results" / "speech.json").read_text())


@pytest.fixture
def pairs(program):
    return program("speech_pairs")


@pytest.mark.parametrize("pair", STORED["means"])
def test_what_is_compared_is_what_was_run(pairs, pair):
    means, over_usual = STORED["means"][pair], STORED["over_usual"][pair]
    assert means.keys() == set(pairs.WAYS[pair])
    assert over_usual.keys() == means.keys() - {"usual"}
    for way, mean in means.items():
        runs = [found[way] for key, found in STORED["runs"].items() if key.startswith(f"{pair}, ") and way in found]
        assert mean == pytest.approx(sum(runs) / len(runs))
        if way != "usual":
            assert over_usual[way]["pairs"] == len(runs) >= 3
            assert over_usual[way]["mean"] == pytest.approx(mean - means["usual"])
        if way.startswith("auto"):
            assert over_usual[way]["low"] <= 0  # no more errors than the usual loss makes


def test_the_decoder_reads_what_the_model_itself_would_make_of_labels(pairs):
    ids = torch.tensor([pairs.words()(text)["input_ids"] + [1] for text in ("nine two one", "zero seven four")])
    features = torch.randn(2, pairs.MELS, pairs.FRAMES)
    rows = [{"input_features": features[i], "labels": ids[i][i:]} for i in range(2)]
    batch, model = pairs.collate_words(rows), pairs.whisper().eval()
    assert batch["labels"].tolist()[1] == [*ids[1][1:].tolist(), -100]
    given = model(**batch)
    batch.pop("decoder_input_ids")
    assert torch.equal(model(**batch).logits, given.logits)


def test_a_number_is_the_same_for_both_models(pairs):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    letters, words = pairs.numbers("development"), pairs.words_spoken("development")
    assert len(letters) == len(words) == 400
    for row, whole in zip(words[:20], letters[:20], strict=True):
        length = len(whole["input_features"]) // 2
        assert 30 < length <= pairs.FRAMES
        pooled = whole["input_features"][: 2 * length].view(length, 2, -1).mean(1)
        assert torch.allclose(row["input_features"][:, :length].T, pooled, atol=1e-6)
        assert not row["input_features"][:, length:].any()
        text = pairs.words().decode(row["labels"], skip_special_tokens=True)
        assert 3 <= len(text.split()) <= 5
        assert text == pairs.tokenizer().decode(whole["labels"], group_tokens=False)
        assert row["labels"][-1] == 1
