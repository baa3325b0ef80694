"""Publishing, finding and loading surrogates: the real client, in processes of their own, against a loopback Hub."""

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load

from hf_reloss import SurrogateConfig, SurrogateForClassification
from hf_reloss.hub.pages import write_page

from .runs import said
from .server import validates

LOSS = """
    import torch
    from hf_reloss import AutoSurrogate

    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(50) % 5
"""

LOADED = """
import hf_reloss
surrogate = hf_reloss.AutoSurrogate.from_pretrained("me/it", revision="{}")
"""


def test_what_is_published_is_found_and_gives_the_same_loss_to_the_bit(hub, folder, client):
    address = said(client("reloss", "push", str(folder), "me/reloss-accuracy"))
    assert address.startswith(f"{hub.url}/me/reloss-accuracy/commit/")
    files = hub.repos["me/reloss-accuracy"].files("main")
    assert {"README.md", "alignment.png", "config.json", "model.safetensors"} <= set(files)
    assert 'AutoSurrogate.from_pretrained("me/reloss-accuracy")' in files["README.md"].decode()
    assert len(hub.repos["me/reloss-accuracy"].history) == 2  # that of an empty repository, and one with everything
    listed = said(client("reloss", "list", "--metric", "accuracy", "--task", "classification", "--author", "me"))
    assert "me/reloss-accuracy" in listed
    assert "me/reloss-accuracy" not in said(client("reloss", "list", "--metric", "f1"))
    code = f"{LOSS}\n    print(AutoSurrogate.from_pretrained({{!r}})(logits, labels).item().hex())"
    places = {str(folder): "a", "me/reloss-accuracy": "b"}
    by_folder, by_name = (said(client(code.format(place), cache=cache)) for place, cache in places.items())
    assert by_name == by_folder


def test_a_second_push_keeps_what_the_user_wrote_and_adds_a_revision(hub, folder, client):
    said(client("reloss", "push", str(folder), "me/it"))
    repo = hub.repos["me/it"]
    page = repo.files("main")["README.md"].decode()
    edited = page.replace("## How it was made", "## Made of old bread").replace(
        "library_name", "license: mit\nlibrary_name"
    )
    first = repo.commit("main", repo.files("main") | {"README.md": f"{edited}\nMy own words.\n".encode()})
    code = f"""
    from hf_reloss import AutoSurrogate
    surrogate = AutoSurrogate.from_pretrained({str(folder)!r})
    surrogate.config.record["alignment"] = 0.95
    surrogate.push_to_hub("me/it", commit_message="better")
    """
    said(client(code))
    page = repo.files("main")["README.md"].decode()
    for words in ("## Made of old bread", "My own words.", "license: mit", "**0.9500**"):
        assert words in page
    assert "How it was made" not in page
    assert "**0.9000**" not in page
    load_first = (
        f'import hf_reloss\nprint(hf_reloss.AutoSurrogate.from_pretrained("me/it", revision={first!r}).config.record)'
    )
    assert "'alignment': 0.9," in said(client(load_first))


def test_branches_are_made_and_loaded(hub, folder, client):
    said(client("reloss", "push", str(folder), "me/it", "--revision", "trial"))
    repo = hub.repos["me/it"]
    assert "model.safetensors" in repo.files("trial")
    assert "model.safetensors" not in repo.files("main")
    load_trial = (
        'import hf_reloss\nprint(hf_reloss.AutoSurrogate.from_pretrained("me/it", revision="trial").config.metric)'
    )
    assert said(client(load_trial)) == "accuracy|normalize:True"


def test_a_private_repository_is_not_there_for_others(hub, folder, client):
    said(client("reloss", "push", str(folder), "me/secret", "--private"))
    assert hub.repos["me/secret"].private
    refused = client("reloss", "inspect", "me/secret", cache="other", token=None)
    assert refused.returncode == 1
    assert "is not a local folder and is not a valid model identifier" in refused.stdout.replace("\n", " ")
    assert "accuracy" in said(client("reloss", "inspect", "me/secret", cache="other"))


@pytest.mark.parametrize("request_", ["PUT /lfs", "POST .*/commit/"])
def test_a_server_that_fails_in_the_middle_of_a_push_leaves_nothing_half_published(hub, folder, client, request_):
    hub.fail(request_, 500, times=50)
    failed = client("reloss", "push", str(folder), "me/it")
    assert failed.returncode == 1
    assert "500" in failed.stdout
    assert set(hub.repos["me/it"].files("main")) == {".gitattributes"}
    hub.failures.clear()
    said(client("reloss", "push", str(folder), "me/it"))
    assert "model.safetensors" in hub.repos["me/it"].files("main")


def test_a_connection_that_is_cut_in_a_download_leaves_no_damaged_cache(hub, folder, client):
    said(client("reloss", "push", str(folder), "me/it"))
    hub.fail("GET /me/it/resolve/.*/model.safetensors", 0)
    first = client("reloss", "inspect", "me/it", cache="cut")
    assert first.returncode == 0 or "error" in first.stdout
    assert "accuracy" in said(client("reloss", "inspect", "me/it", cache="cut"))
    weights = load(hub.repos["me/it"].files("main")["model.safetensors"])
    assert weights  # what was pushed is whole
    assert not hub.failures  # and the cut did happen


def test_eight_processes_load_at_once(hub, folder, client):
    from concurrent.futures import ThreadPoolExecutor

    said(client("reloss", "push", str(folder), "me/it"))
    code = f'{LOSS}\n    print(AutoSurrogate.from_pretrained("me/it")(logits, labels).item().hex())'
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: client(code, cache="shared"), range(8)))
    assert len({said(run) for run in runs}) == 1


@validates
def test_the_hubs_own_validation_accepts_the_page(hub, folder, client):
    code = f"""
    from huggingface_hub import ModelCard
    card = ModelCard.load({str(folder / "README.md")!r})
    card.validate()
    print(card.data.library_name, *card.data.tags, card.data.eval_results[0].metric_value)
    """
    assert said(client(code)) == "hf-reloss reloss accuracy reloss-classification 0.9"
    assert ("POST", "/api/validate-yaml") in hub.requests


def test_write_page_names_the_folder_by_default(folder):
    assert f'from_pretrained("{folder}")' in (folder / "README.md").read_text()
    write_page(SurrogateForClassification(SurrogateConfig()).facts(), folder, "me/other")
    assert 'from_pretrained("me/other")' in (folder / "README.md").read_text()


def test_a_section_that_was_taken_out_stays_away(folder):
    page = folder / "README.md"
    text = page.read_text()
    start = text.index("<!-- section citation")
    page.write_text(text[:start])
    surrogate = SurrogateForClassification(SurrogateConfig())
    write_page(surrogate.facts(), folder)
    assert "Citation" not in page.read_text()
    assert "It has not been learned" in page.read_text()


def test_what_was_another_surrogates_does_not_stay(tmp_path):
    first = SurrogateForClassification.for_metric("accuracy")
    first.save_pretrained(tmp_path, card_data={"tags": ["medical"]})  # nothing is known of it, and there is no picture
    second = SurrogateForClassification.for_metric("f1", average="macro")
    second.config.metric = "f1|average:macro"
    second.config.record = {
        "alignment": 0.9, "alignment_cross_entropy": 0.8,
        "held_out": {key: [0.1, 0.2] for key in ("score", "loss", "cross_entropy")},
    }  # fmt: skip
    first.config.metric = "accuracy"
    first.save_pretrained(tmp_path)
    tags = ModelCard.load(tmp_path / "README.md").data.tags
    assert tags == ["reloss", "accuracy", "reloss-classification", "medical"]
    second.save_pretrained(tmp_path)
    page = ModelCard.load(tmp_path / "README.md")
    assert page.data.tags == ["reloss", "f1", "reloss-classification", "medical"]
    assert "](alignment.png)" in page.text


def test_what_was_loaded_before_is_loaded_without_a_server(folder, client, hub, tmp_path):
    said(client("reloss", "push", str(folder), "me/it", "--revision", "trial"))
    code = """
    import sys
    from hf_reloss import AutoSurrogate
    options = {"revision": "trial", "cache_dir": sys.argv[1], "local_files_only": sys.argv[2] == "local"}
    print(AutoSurrogate.from_pretrained("me/it", **options).config.origin)
    """
    origin = said(client(code, str(tmp_path / "mine"), "", cache="one"))
    assert origin == f"me/it@{hub.repos['me/it'].branches['trial']}"
    hub.shutdown()
    hub.server_close()
    assert said(client(code, str(tmp_path / "mine"), "local", cache="two")) == origin


def test_a_network_that_is_not_there_is_told_of(folder, client, hub):
    hub.shutdown()
    hub.server_close()
    for command in (("push", str(folder), "me/it"), ("list",)):
        run = client("reloss", *command)
        assert run.returncode == 1
        assert run.stdout.startswith("error: ")
        assert "Traceback" not in run.stdout + run.stderr
