"""The page of `reloss app`: what it says, and the page itself, served and used as people do."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.repocard import metadata_load
from matplotlib.image import imread

from hf_reloss import DecisionRule, app, load_metric, tune_decision
from hf_reloss.compare.task import digit_predictions

from .browser import Browser, found
from .test_cli import call

MACRO = json.dumps({"average": "macro"})
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def few_digits(some_are_rare: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = digit_predictions(some_are_rare)
    return logits[:400], labels[:400]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What a classifier of digits, some of which were rare, puts out, with names of classes for labels."""
    logits, labels = few_digits(True)
    path = tmp_path_factory.mktemp("table") / "digits.csv"
    rows = [",".join([*(f"score_{name}" for name in NAMES), "label"])]
    rows += [",".join([*map(repr, row), NAMES[label]]) for row, label in zip(logits.tolist(), labels, strict=True)]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(app, "SECONDS", 0.5)
    monkeypatch.setattr(app, "digit_predictions", few_digits)


def test_the_command_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, output = call("app")
    assert code == 1
    assert "This needs gradio: pip install 'hf-reloss[app]'." in " ".join(output.split())


def test_a_table_is_decided_on_from_the_command_line(table, tmp_path):
    code, output = call("decide", table, "--metric", "f1", "--metric-options", MACRO, "--output", tmp_path / "rule")
    assert code == 0, output
    logits, labels = few_digits(True)
    wanted = tune_decision(logits, labels, load_metric("f1", average="macro"))
    assert str(wanted) in " ".join(output.split())
    rule = DecisionRule.load(tmp_path / "rule")
    assert (rule.decide(logits) == wanted.rule.decide(logits)).float().mean() > 0.999


def test_the_space_serves_the_page_with_the_version_that_is_tested(monkeypatch):
    space, calls = Path(__file__).parents[1] / "space", []
    monkeypatch.setattr(app, "launch", lambda: calls.append("launched"))
    runpy.run_path(str(space / "app.py"))
    assert calls == ["launched"]
    card = metadata_load(space / "README.md")
    assert card["app_file"] == "app.py"
    assert f"gradio=={card['sdk_version']}\n" in (space.parent / "constraints.txt").read_text()


@pytest.fixture(scope="module")
def served():
    """The page on a free port."""
    pytest.importorskip("gradio")
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=None)
    import gradio
    from gradio_client import Client

    yield SimpleNamespace(address=address, client=Client(address, verbose=False))
    gradio.close_all(verbose=False)


def look(served, source, file=None, scores=(), labels=(), metric="f1", options=MACRO):
    from gradio_client import handle_file

    given = handle_file(str(file)) if file is not None else None
    said, *files = served.client.predict(source, given, [*scores], [*labels], metric, options, api_name="/look")
    return said, [file.get("value", file) if isinstance(file, dict) else file for file in files]


def test_an_uploaded_table_comes_to_words_pictures_and_a_rule(served, table, tmp_path):
    said, (rule, *pictures) = look(served, app.OWN, table)
    logits, labels = few_digits(True)
    wanted = tune_decision(logits, labels, load_metric("f1", average="macro"))
    assert f"changes it by {wanted.after - wanted.before:+.4f} [{wanted.low:+.4f}, {wanted.high:+.4f}]" in said
    assert f"400 rows of 10 logits, of which f1 is **{wanted.before:.4f}**" in said
    assert "| cross-entropy | 0." in said
    (tmp_path / "decision.json").write_bytes(Path(rule).read_bytes())
    assert (DecisionRule.load(tmp_path).decide(logits) == wanted.rule.decide(logits)).float().mean() > 0.999
    for picture in pictures:
        assert imread(picture)[..., :3].std() > 0.03


def test_what_does_not_work_is_said(served, table, tmp_path):
    from gradio_client.exceptions import AppError

    for given, message in [
        ({"source": app.OWN}, "There is no table yet"),
        ({"source": app.DIGITS, "metric": "f2"}, "Unknown metric 'f2': the nearest are"),
        ({"source": app.DIGITS, "options": "average"}, "Its options are JSON"),
        ({"source": app.OWN, "file": table, "scores": ["label"]}, "Scores are numbers, but not in the column 'label'"),
    ]:
        with pytest.raises(AppError, match=message):
            look(served, **given)
    logits, labels = torch.randn(100, 3).softmax(-1), torch.arange(100) % 3
    np.savez(tmp_path / "few.npz", logits=logits.numpy(), labels=labels.numpy())
    said, (rule, *pictures) = look(served, app.OWN, tmp_path / "few.npz", metric="roc_auc", options="{}")
    assert "100 rows of 3 probabilities" in said
    assert "No loss was learned: 100 predictions are recorded" in said
    assert "There is none to tune: roc_auc scores logits" in said
    assert [rule, *pictures] == [None] * 4


@pytest.mark.skipif(found() is None, reason="wants a browser: chromium or google-chrome")
def test_in_a_browser_a_click_brings_what_there_is_to_say(served, tmp_path):
    with Browser() as browser:
        browser.size(1280, 900)
        browser.open(served.address)
        browser.wait("document.querySelector('#look') !== null")
        click = "document.querySelector('#look').click()"  # of which the page takes one at a time, once it listens
        browser.wait(f"{click}, document.body.innerText.match(/processing|queue|rank correlation/) !== null")
        browser.wait("document.querySelector('#said')?.innerText.includes('rank correlation with f1')")
        assert "A decision made for f1 changes it by +0." in browser.ask("document.querySelector('#said').innerText")
        shown = "[...document.images].filter(image => image.naturalWidth > 400)"
        browser.wait(f"{shown}.length == 3")
        assert browser.ask("document.querySelector('#rule').innerText").strip() == "Download decision.json"
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            browser.size(width, 2400, scheme)
            browser.wait(f"document.documentElement.scrollWidth <= {width}")  # nothing to be scrolled aside
            browser.picture(tmp_path / f"{width}_{scheme}.png")
            assert imread(tmp_path / f"{width}_{scheme}.png").shape[1] == width
