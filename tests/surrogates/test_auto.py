import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForClassification

from .test_classification import surrogate_with_random_weights


@pytest.fixture(params=["margin", "paper"])
def saved(request, tmp_path):
    surrogate = surrogate_with_random_weights(
        0, architecture=request.param, metric="accuracy", record={"alignment": 0.9}
    )
    surrogate.save_pretrained(tmp_path / "surrogate")
    return surrogate, tmp_path / "surrogate"


@pytest.mark.parametrize("load", [AutoSurrogate, SurrogateForClassification, AutoModel])
def test_saved_and_loaded_it_gives_the_same_loss_to_the_bit(saved, load):
    surrogate, folder = saved
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    loaded = load.from_pretrained(folder)
    assert type(loaded) is SurrogateForClassification
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    assert torch.equal(loaded(logits, labels, reduction="none"), surrogate(logits, labels, reduction="none"))
    assert loaded.config.record == {"alignment": 0.9}
    assert not loaded.training


def test_another_process_loads_the_same_loss(saved):
    surrogate, folder = saved
    code = (
        "import torch, transformers, hf_reloss\n"
        f"loss = transformers.AutoModel.from_pretrained({str(folder)!r})\n"
        "z = torch.linspace(-3, 3, 20).view(4, 5)\n"
        "print(loss(z, torch.arange(4)).item().hex())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = surrogate(torch.linspace(-3, 3, 20).view(4, 5), torch.arange(4))
    assert printed.strip().splitlines()[-1] == expected.item().hex()


def test_configurations_are_known_to_transformers(saved):
    _, folder = saved
    assert type(AutoConfig.from_pretrained(folder)) is SurrogateConfig
    assert type(AutoModel.from_config(SurrogateConfig(architecture="paper"))) is SurrogateForClassification
    assert type(AutoSurrogate.from_config(SurrogateConfig())) is SurrogateForClassification


def test_importing_hf_reloss_imports_neither_torch_nor_the_auto_classes():
    heavy = "('torch', 'transformers', 'datasets', 'evaluate')"
    code = f"import hf_reloss, sys; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_only_configuration_safetensors_and_a_page_are_written(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "reloss"


@pytest.mark.parametrize("load", [AutoSurrogate, SurrogateForClassification, AutoModel])
def test_keywords_of_the_ecosystem_reach_configuration_and_weights(tmp_path, load):
    root, sub = surrogate_with_random_weights(1), surrogate_with_random_weights(2)
    root.save_pretrained(tmp_path)
    sub.save_pretrained(tmp_path / "sub")
    loaded = load.from_pretrained(tmp_path, subfolder="sub", dtype=torch.bfloat16)
    for name, weight in sub.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)  # float32, whatever was asked for
    loaded, info = load.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(loaded.network.spline.log_slopes, root.network.spline.log_slopes)
    assert not info["missing_keys"]
    assert load.from_pretrained(tmp_path, config=sub.config).config is not None


def test_truncated_weights_are_refused(saved):
    _, folder = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(OSError, match=r"damaged.*again"):
        AutoSurrogate.from_pretrained(folder)


def test_a_pickle_is_never_loaded(saved, tmp_path):
    _, folder = saved
    (folder / "model.safetensors").unlink()

    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"log_temperature": Harmful()}))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoSurrogate.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_a_folder_of_another_model_is_refused(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    ).save_pretrained(tmp_path)
    for load in (AutoSurrogate, SurrogateForClassification):
        with pytest.raises(ValueError, match=r"no surrogate.*'bert'"):
            load.from_pretrained(tmp_path)


def test_a_folder_without_a_model_is_the_ecosystems_own_error(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        AutoSurrogate.from_pretrained(tmp_path)


def test_a_surrogate_for_another_task_is_refused(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task": "juggling"}))
    with pytest.raises(ValueError, match="for juggling, but SurrogateForClassification is for classification"):
        SurrogateForClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match="no surrogates for the task 'juggling'"):
        AutoSurrogate.from_pretrained(folder)


def test_missing_weights_are_refused(saved):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="lack"):
        AutoSurrogate.from_pretrained(folder)
