"""Summaries: what the base is trained on first, and that it can copy from the start."""

import json
import os

import pytest
import torch

from hf_reloss import load_metric


@pytest.fixture
def summaries(program):
    return program("summaries")


def test_the_sentence_that_says_most_of_the_others(summaries):
    sentences = ["loss and", "Loss and metric disagree", "metric disagree often"]
    assert summaries._most_telling(sentences) == sentences[1]
    assert summaries._most_telling(sentences[:1]) == sentences[0]


def test_a_new_model_looks_at_what_stands_behind_the_token_just_written(summaries, monkeypatch):
    """By the first head of cross-attention; the second looks at the token itself."""
    monkeypatch.setattr(summaries, "tokenizer", lambda: range(500))
    torch.manual_seed(0)
    model = summaries.make_model().eval()
    model.set_attn_implementation("eager")
    source = torch.randperm(400)[None, :20] + 50
    found = model(input_ids=source, decoder_input_ids=source, output_attentions=True).cross_attentions[0][0]
    after = found[0].argmax(-1)[:-1] == torch.arange(1, 20)
    assert after.float().mean() > 0.8
    assert (found[1].argmax(-1) == torch.arange(20)).float().mean() > 0.8


def test_the_first_sentence_of_an_abstract_is_better_than_all_that_was_trained_here(program, summaries):
    """As docs/tasks/texts.md says of these models."""
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("The data is not there.")
    stored = json.loads((program("tables").RESULTS / "text_candidates.json").read_text())
    means = stored["scitldr, test"]["rougeL, beam"]["means"]
    first = [paper["source"][0] for paper in summaries.papers("test")]
    assert 100 * load_metric("rougeL").compute(first, summaries.references("test")) > max(means.values())
