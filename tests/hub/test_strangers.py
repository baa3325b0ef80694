"""Surrogates that a stranger made to do harm: in their files, their configurations and the texts in these."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from transformers import AutoModel

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForClassification
from hf_reloss.hub import PAGE
from hf_reloss.hub.pages import write_page
from hf_reloss.hub.publishing import included
from hf_reloss.hub.trained_models import write_loss

from .test_cards import ROOT

roads = pytest.mark.parametrize("load", [AutoSurrogate, SurrogateForClassification, AutoModel])


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(ROOT / "hub_cards" / "accuracy", tmp_path / "surrogate"))


def configure(folder: Path, **changes) -> None:
    """Changes what is in a configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def loss_of(surrogate: SurrogateForClassification) -> float:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(3))
    return surrogate(logits, torch.arange(50) % 5).item()


# Which files are loaded


@pytest.fixture
def trap(tmp_path):
    """A pickle, and the file that is there once somebody loaded it."""

    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    return pickle.dumps({"network.spline.offset": Trap()}), tmp_path / "harm"


@roads
def test_a_configuration_cannot_name_other_weights(folder, trap, load):
    expected = loss_of(load.from_pretrained(folder))
    (folder / "other.bin").write_bytes(trap[0])
    configure(folder, transformers_weights="other.bin")
    assert loss_of(load.from_pretrained(folder)) == expected
    assert not trap[1].exists()


@roads
@pytest.mark.parametrize("name", ["weights.bin", "../other.safetensors"])
def test_an_index_cannot_name_other_weights(folder, trap, load, name):
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder.parent / "other.safetensors")
    weights.unlink()
    (folder / "weights.bin").write_bytes(trap[0])
    names = AutoSurrogate.from_config(SurrogateConfig()).state_dict()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"model\.safetensors.*one file only"):
        load.from_pretrained(folder)
    assert not trap[1].exists()


def test_weights_are_saved_in_the_one_file_that_is_loaded(folder, tmp_path):
    surrogate = AutoSurrogate.from_pretrained(folder)
    surrogate.save_pretrained(tmp_path / "again", max_shard_size=32)
    assert loss_of(AutoSurrogate.from_pretrained(tmp_path / "again")) == loss_of(surrogate)


@pytest.mark.parametrize("short", ["../hub_cards/accuracy", "./accuracy", "..", str(ROOT / "hub_cards" / "accuracy")])
def test_no_name_leads_out_of_the_folder_of_included_surrogates(short):
    assert included(f"reloss/{short}") is None
    with pytest.raises(OSError, match="reloss/"):
        AutoSurrogate.from_pretrained(f"reloss/{short}", local_files_only=True)


# What a configuration may ask for

MACHINERY = {
    "attn_implementation": "someone/kernels",
    "_attn_implementation": "someone/kernels",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fusion_config": {"patch_embeddings": True},
    "auto_map": {"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"},
    "dtype": "float16",
    "torch_dtype": "float16",
    "per_layer_config": [{}],
    "num_labels": 10**9,
    "architectures": ["BertModel"],
    "network": "mine",
}


@roads
@pytest.mark.parametrize("name", MACHINERY)
def test_nothing_in_a_configuration_starts_other_machinery(folder, load, name):
    expected = loss_of(load.from_pretrained(folder))
    configure(folder, **{name: MACHINERY[name]})
    loaded = load.from_pretrained(folder)
    assert loss_of(loaded) == expected
    assert MACHINERY[name] != getattr(loaded.config, name, None)


@pytest.mark.parametrize("load", [AutoSurrogate, SurrogateForClassification])
def test_neither_does_one_that_was_read_before(folder, load):
    config = AutoSurrogate.from_pretrained(folder).config
    config._attn_implementation = "someone/kernels"
    config.transformers_weights = "other.bin"
    config.quantization_config = MACHINERY["quantization_config"]
    loaded = load.from_pretrained(folder, config=config)
    assert loss_of(loaded) == loss_of(AutoSurrogate.from_pretrained(folder))
    assert not hasattr(loaded.config, "quantization_config")
    config.hidden_size = 10**9
    with pytest.raises(ValueError, match="hidden_size"):
        load.from_pretrained(folder, config=config)


@roads
def test_an_adapter_in_the_folder_is_not_loaded(folder, load):
    if load is AutoModel and transformers.__version__.startswith("5.0."):
        pytest.skip("Its AutoModel follows an adapter before it knows which class it loads.")
    expected = loss_of(load.from_pretrained(folder))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    assert loss_of(load.from_pretrained(folder)) == expected


WRONG = {
    "hidden_size": [10**9, "128", True, 1.5, None],
    "num_knots": [10**9, 0],
    "max_order": [10**9],
    "num_pixels": [10**9],
    "reach": [-1],
    "knot_range": [float("inf"), float("nan"), "4"],
    "sigma": [0, [1.0]],
    "task": [3, "../classification", "a b"],
    "architecture": ["margin\n# mine"],
    "metric": [{"f1": {}}],
    "origin": [3],
    "scores": [["f1"], {"f1": "macro"}],
    "loss_options": ["gamma"],
    "hf_reloss_version": [9],
    "record": [
        [], {"alignment": "high"}, {"alignment_cross_entropy": 10**400}, {"models": "mine"}, {"models": [3]},
        {"data": 3}, {"settings": []}, {"held_out": {"loss": ["x"]}}, {"held_out": {"loss": [1.0], "score": []}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_of_a_wrong_type_or_size_is_refused_by_name(folder, name, value):
    configure(folder, **{name: value})
    for load in (AutoSurrogate, AutoModel):
        with pytest.raises(ValueError, match=f"{name}.*must be"):
            load.from_pretrained(folder)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("class_correlation", {"classes": 10**9}),
        ("class_correlation", {"classes": 2.5}),
        ("focal", {"gamma": "2"}),
        ("focal", {"gamma": float("nan")}),
        ("class_weights", {"frequencies": 3}),
        ("class_weights", {"frequencies": ["a", "b"]}),
        ("class_weights", {"frequencies": [float("inf"), 1.0]}),
    ],
)
def test_options_of_hand_made_losses_are_checked(folder, architecture, options):
    configure(folder, architecture=architecture, loss_options=options)
    with pytest.raises(ValueError, match=r"loss .*(but )?got"):
        AutoSurrogate.from_pretrained(folder)


def test_options_that_a_network_does_not_have_are_refused_in_one_line(folder):
    configure(folder, loss_options={MARKUP: MARKUP})
    with pytest.raises(ValueError, match="The options of the architecture 'margin' do not fit") as refusal:
        AutoSurrogate.from_pretrained(folder)
    assert str(refusal.value).isprintable()


def test_scores_with_options_that_no_metric_takes_are_refused(folder):
    configure(folder, architecture="counts", scores={"f1": {"metric": "f1"}})
    with pytest.raises(ValueError, match="multiple values"):
        AutoSurrogate.from_pretrained(folder)


def test_a_newer_version_is_named_where_it_gave_a_field_another_type(folder):
    configure(folder, hidden_size=[8, 8], hf_reloss_version="9.0.0")
    with pytest.raises(ValueError, match=r"hidden_size.*9\.0\.0.*upgrade"):
        AutoSurrogate.from_pretrained(folder)


@pytest.mark.parametrize("depth", [20, 100_000])
def test_a_configuration_that_is_nested_too_deeply_is_refused(folder, depth):
    file = folder / "config.json"
    file.write_text('{"model_type": "reloss", "record": {"x": ' + depth * "[" + depth * "]" + "}}")
    with pytest.raises(ValueError, match=r"nested too deeply|record"):
        AutoSurrogate.from_pretrained(folder)


def test_a_configuration_that_is_too_large_is_refused(folder):
    configure(folder, metric=2**24 * "x")
    with pytest.raises(ValueError, match="bytes"):
        AutoSurrogate.from_pretrained(folder)


# What its texts may do

MARKUP = "x\n\n# heading\n<!-- section summary 0 -->\r<script>|\\|`![p](http://a/b.png)\u2028[/]\x1b[31m\ud800"
"""A bit of everything that could mean something where it is shown."""


@pytest.fixture
def marked(folder):
    """A surrogate with such a text in every field that holds texts, as it is loaded."""
    content = json.loads((folder / "config.json").read_text())
    record = content["record"] | {
        "models": [f"Bert {MARKUP}", MARKUP], "data": MARKUP, "eval_groups": MARKUP, "group_size": MARKUP,
        f"key {MARKUP}": MARKUP, "settings": {f"key {MARKUP}": MARKUP, "list": [MARKUP]},
    }  # fmt: skip
    configure(folder, metric=f"{MARKUP}|{MARKUP}:{MARKUP}", record=record, origin=f"{MARKUP}@{MARKUP}")
    configure(folder, scores={MARKUP: {MARKUP: MARKUP}})
    (folder / PAGE).unlink()
    return AutoSurrogate.from_pretrained(folder)


def test_no_text_writes_markup_into_its_page(marked, tmp_path):
    write_page(marked.facts(), tmp_path, "me/marked")
    page = ModelCard.load(tmp_path / PAGE)
    lines = page.text.splitlines()
    headings = [line.removeprefix("## ") for line in lines if re.match("##? [^I]", line)]
    assert headings == ["# marked", "How to use it", "How it was made", "Citation"]
    names = [line.split()[2] for line in lines if line.startswith("<!-- section")]
    assert names == ["summary", "picture", "use", "details", "citation"]
    assert page.text.count("<") == 2 * len(names)
    for wrong in ("](http://", "\x1b", "\u2028"):
        assert wrong not in page.content
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert re.fullmatch(r"\|((\\.|[^|\\])*\|){2}", row)
    for text in (*page.data.tags, *page.data.base_model, page.data.eval_results[0].metric_name):
        assert text.isprintable()
        assert "<" not in text


def test_no_text_writes_markup_into_the_page_of_a_trained_model(marked, tmp_path):
    (tmp_path / PAGE).write_text("---\ntags: []\n---\n# Model\n")
    write_loss(tmp_path, marked.facts(), own_share=0.0, of_transformers=True)
    text = ModelCard.load(tmp_path / PAGE).text
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Model", "## Loss"]
    for wrong in ("<script", "<!--", "](http://", "huggingface.co/x"):
        assert wrong not in text


@pytest.mark.parametrize("name", [r"$\frac$", "a $x", r"\$ and $\foo$", "long " * 10_000])
def test_a_picture_shows_a_metrics_name_as_it_is(folder, monkeypatch, name):
    surrogate = AutoSurrogate.from_pretrained(folder)
    surrogate.config.metric = name
    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    write_page(surrogate.facts(), folder)
    label = shown[0].axes[0].yaxis.label
    shown[0].canvas.draw()
    text, is_formula = label._preprocess_math(label.get_text())
    assert (text, is_formula) == (name[:80], False)


def test_a_record_without_all_that_a_picture_shows_has_none(folder):
    surrogate = AutoSurrogate.from_pretrained(folder)
    (folder / "alignment.png").unlink()
    del surrogate.config.record["held_out"]["cross_entropy"]
    surrogate.save_pretrained(folder)
    assert not (folder / "alignment.png").exists()
    assert "alignment.png" not in (folder / PAGE).read_text()
