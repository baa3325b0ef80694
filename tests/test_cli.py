import json
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from hf_reloss import AutoSurrogate, SurrogateConfig, __version__
from hf_reloss.cli import app

from .surrogates.test_classification import surrogate_with_random_weights


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.slow
def test_the_demo_leaves_numbers_picture_and_surrogate(tmp_path):
    code, output = call("demo", "--seeds", 2, "--output", tmp_path)
    assert code == 0
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert len(numbers["scores"]["reloss"]) == 2
    assert "of 2" in output
    picture = imread(tmp_path / "demo.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 0.05
    config = AutoSurrogate.from_pretrained(tmp_path / "surrogate").config
    assert config.metric == "accuracy"
    assert config.record["alignment"] > 0.95


@pytest.mark.parametrize("architecture", ["margin", "counts", "paper"])
def test_inspect_shows_record_and_curve(tmp_path, architecture):
    record = {"alignment": 0.98765, "predictions": 1234}
    surrogate_with_random_weights(0, architecture=architecture, metric="accuracy", record=record).save_pretrained(
        tmp_path
    )
    code, output = call("inspect", tmp_path)
    assert code == 0
    for word in ("accuracy", architecture, "0.9877", "1234", "█"):
        assert word in output
    assert ("matthews_correlation 0." in " ".join(output.split())) == (architecture == "counts")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"task": "tokens", "reach": 1}, ("n-grams", "1: 0.25", "-1: 0.95", "█")),
        ({"task": "tokens", "architecture": "paper", "hidden_size": 8}, ("paper",)),
        ({"task": "spans"}, ("overlap", "█")),
        ({"task": "keypoints"}, ("hits", "█")),
    ],
)
def test_inspect_knows_every_task(tmp_path, options, shown):
    AutoSurrogate.from_config(SurrogateConfig(**options)).save_pretrained(tmp_path)
    code, output = call("inspect", tmp_path)
    assert code == 0
    for word in (options["task"], *shown):
        assert word in output
    assert ("█" in output) == ("█" in shown)


def test_inspect_and_list_show_markup_as_it_is(tmp_path, monkeypatch):
    text = "[/] [red]x[/red] [link=http://a]y[/link] :smile: <lambda>\x1b[31m\r\n"
    shown = "[/] [red]x[/red] [link=http://a]y[/link] :smile: ‹lambda›[31m"
    record = {"alignment": 0.9, f"a {text}": 1, "b": text, "c": [text, 2], "settings": {"d": text}}
    folder = tmp_path / "[bold]"
    monkeypatch.setattr("hf_reloss.cli.console", Console(width=400))
    surrogate_with_random_weights(0, metric=text, record=record, origin=text).save_pretrained(folder)
    code, output = call("inspect", folder)
    assert code == 0
    assert output.count(shown) == 6
    assert "\x1b" not in output
    assert "[bold]" in output
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "counts", "scores": {"f1": {text: 1}}}))
    code, output = call("inspect", folder)
    assert code == 1
    assert shown.partition("‹")[0] in output
    assert "\x1b" not in output
    found = SimpleNamespace(id="someone/[/]", tags=[text], downloads=None)
    monkeypatch.setattr("hf_reloss.hub.publishing.list_surrogates", lambda **_: [found])
    code, output = call("list")
    assert code == 0
    assert "someone/[/]" in output
    assert shown in output


def test_inspect_of_something_else_says_so_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    code, output = call("inspect", tmp_path)
    assert code == 1
    assert "no surrogate" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("form", ["bin", "wrapped", "safetensors"])
def test_convert_reads_the_authors_names(tmp_path, form):
    source = surrogate_with_random_weights(3, architecture="paper", hidden_size=16)
    weights = {name: weight.clone() for name, weight in source.network.state_dict().items()}
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.ckpt")
    if form == "safetensors":
        save_file(weights, file)
    else:
        torch.save({"state_dict": weights} if form == "wrapped" else weights, file)
    code, output = call("convert", file, tmp_path / "out")
    assert code == 0, output
    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    assert AutoSurrogate.from_pretrained(tmp_path / "out")(logits, labels) == source(logits, labels)


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"not a checkpoint", "cannot be read"),
        (pickle.dumps(Harmful()), "cannot be read"),
        ({"fc.weight": torch.randn(3)}, "no checkpoint of the authors"),
        ({"logits_fcs.0.weight": torch.randn(8, 1)}, "do not fit"),
    ],
)
def test_convert_refuses_other_files(tmp_path, content, message, capsys):
    file = tmp_path / "weights.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    code, output = call("convert", file, tmp_path / "out")
    assert code == 1
    assert message in " ".join(output.split())
    assert "harm" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "column"), [("text_classification", "--text_pair_column"), ("language_modeling", "--prompt_column")]
)
def test_the_help_of_a_program_fits_a_screen(program, column):
    code, output = call("train", program, "--help")
    assert code == 0
    assert len(output.splitlines()) < 45
    assert f"reloss train {program} \\\n" in output
    for flag in ("--train_file", column, "--metric"):
        assert re.search(rf"^{flag} +\w", output, flags=re.MULTILINE)
    if program == "text_classification":
        assert "learn one in this very run" in " ".join(output.split())  # of --surrogate, which takes two lines


def test_programs_are_listed_and_near_names_are_named():
    assert all(f"  {name}\n" in call("train")[1] for name in ("translation", "speech_recognition"))
    code, output = call("train", "text_clasification", "--do_train")
    assert code == 1
    assert "is 'text_classification' meant?" in " ".join(output.split())
    assert call("--version")[1].split() == ["hf_reloss", __version__]


def test_a_program_is_run_with_what_follows_its_name(capfd):
    assert call("train", "translation", "--do_train", "--output_dir", "out")[0] == 1  # as the program ended
    assert "Pass either --dataset_name or --train_file" in capfd.readouterr().err
