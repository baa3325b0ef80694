"""Servers that ask for patience, full disks, repositories that hold less than a surrogate, or more."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from hf_reloss import SurrogateConfig, SurrogateForClassification

from .runs import LOSSES, RELOSS, client_of, complaint, refused, said
from .server import Hub, running_hub

SPACE = """
import resource, signal

def leave_space(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # what is written beyond fails instead
"""


@pytest.fixture
def large(tmp_path):
    """A saved surrogate with weights of 130 kB."""
    paper_surrogate().save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def paper_surrogate(**options) -> SurrogateForClassification:
    return SurrogateForClassification(SurrogateConfig(architecture="paper", metric="accuracy", **options))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def configured(files: dict[str, bytes], **changes) -> dict[str, bytes]:
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


def is_published(hub: Hub, name: str) -> bool:
    """Whether all of a surrogate is there; else there is none of it."""
    files = set(hub.repos[name].files("main")) if name in hub.repos else set()
    assert files <= {".gitattributes"} or {"README.md", "config.json", "model.safetensors"} <= files
    return "config.json" in files


@pytest.mark.parametrize("request_", ["PUT /lfs", "POST .*/commit/"])
def test_a_server_that_asks_for_patience_once_gets_all_of_a_push_or_nothing(hub, large, client, request_):
    hub.fail(request_, 429, Retry_After="0")
    push = client("reloss", "push", str(large), "me/it")
    assert push.returncode == 0 or "429" in refused(push)
    assert is_published(hub, "me/it") == (push.returncode == 0)


@pytest.mark.parametrize("request_", ["PUT /lfs", "POST .*/commit/"])
def test_a_server_that_asks_for_patience_again_and_again_gets_nothing_until_the_next_push(hub, large, client, request_):
    hub.fail(request_, 429, times=50, Retry_After="0")
    assert "429" in refused(client("reloss", "push", str(large), "me/it"))
    assert not is_published(hub, "me/it")
    hub.failures.clear()
    said(client("reloss", "push", str(large), "me/it"))
    assert is_published(hub, "me/it")


def test_a_disk_that_is_full_leaves_no_damaged_download(hub, large, client):
    hub.publish("me/it", files_in(large))
    failed = client(f"{SPACE}\nleave_space(60_000)\n{RELOSS}", "inspect", "me/it")
    assert "File too large" in refused(failed)
    assert ("GET", "/me/it/resolve/main/config.json") in hub.requests
    by_folder, by_name = said(client(LOSSES, str(large), "me/it")).split()
    assert by_name == by_folder


def test_a_disk_that_is_full_publishes_nothing(hub, large, client):
    code = f"""{SPACE}
import sys
from hf_reloss import AutoSurrogate

surrogate = AutoSurrogate.from_pretrained(sys.argv[1])
for size in (300, 60_000):  # the configuration does not fit, the weights do not
    leave_space(size)
    try:
        surrogate.push_to_hub("me/it")
    except OSError as error:
        print(error)
leave_space(resource.RLIM_INFINITY)
surrogate.push_to_hub("me/it")
"""
    assert said(client(code, str(large))).count("File too large") == 2
    assert is_published(hub, "me/it")
    assert len(hub.repos["me/it"].history) == 2  # that of an empty repository, and one with everything


def test_nothing_in_a_repository_is_executed(hub, large, client, tmp_path):
    trapped = tmp_path / "trapped"

    class Trap:
        def __reduce__(self):
            return open, (str(trapped), "w")

    files = files_in(large)
    pickled = io.BytesIO()
    torch.save({name: Trap() for name in load(files["model.safetensors"])}, pickled)
    hub.publish("me/pickle", {"config.json": files["config.json"], "pytorch_model.bin": pickled.getvalue()})
    module = f"open({str(trapped)!r}, 'w')\nclass Trap: pass\n".encode()
    auto_map = {"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"}
    hub.publish("me/code", configured(files, auto_map=auto_map) | {"trap.py": module})
    code = f"""{LOSSES}
from transformers import AutoModel

print(AutoModel.from_pretrained("me/code")(logits, labels).item().hex())
try:
    AutoSurrogate.from_pretrained("me/pickle")
except OSError as error:
    print(error)
"""
    *losses, error = said(client(code, str(large), "me/code")).splitlines()
    assert len(losses) == 3
    assert len(set(losses)) == 1
    assert "me/pickle" in error
    assert "model.safetensors" in error
    assert not trapped.exists()
    asked = " ".join(path for _, path in hub.requests)
    for path in ("trap.py", "pytorch_model.bin", "/commits/", "/discussions"):  # the last two to have it converted
        assert path not in asked


def test_what_a_newer_version_knows_is_no_hindrance_where_the_loss_does_not_need_it(hub, large, client):
    files = files_in(large)
    newer = {"hf_reloss_version": "9.0.0", "momentum_of_knots": 0.5, "nested": {"options": [1, None]}}
    hub.publish("me/newer", configured(files, **newer))
    hub.publish("me/metric", configured(files, metric="nonsense_metric|k:v"))
    code = f"{LOSSES}\nfrom hf_reloss.cli import app; app(['inspect', 'me/metric'])"
    *losses, shown = said(client(code, str(large), "me/newer", "me/metric")).split("\n", 3)
    assert len(set(losses)) == 1
    assert "nonsense_metric|k:v" in shown


UNUSABLE = {
    "me/no-json": ("config.json",),
    "me/no-object": ("config.json",),
    "me/no-text": ("config.json",),
    "me/bert": ("config.json", "'bert'", "no surrogate"),
    "me/other-shapes": ("shape", "network."),
    "me/lacking": ("lack network.loss.2.bias",),
    "me/truncated": ("damaged",),
    "me/emptied": ("damaged",),
    "me/without-weights": ("model.safetensors",),
    "me/new-task": ("'haiku'", "9.0.0", "upgrad"),
    "me/new-architecture": ("'orchid'", "9.0.0", "upgrad"),
}
"""Repositories that hold no whole surrogate of this version, and what is said of them beside their names."""


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """What `reloss inspect` says of each: its exit code and output, all in one process, for imports take seconds."""
    folder = tmp_path_factory.mktemp("unusable")
    paper_surrogate().save_pretrained(folder / "whole")
    paper_surrogate(hidden_size=64).save_pretrained(folder / "narrow")
    whole = files_in(folder / "whole")
    weights = whole["model.safetensors"]
    tensors = load(weights)
    del tensors["network.loss.2.bias"]
    newer = {"hf_reloss_version": "9.0.0"}
    found = {
        "me/no-json": whole | {"config.json": b"{'model_type': 'reloss'}"},
        "me/no-object": whole | {"config.json": b'["reloss"]'},
        "me/no-text": whole | {"config.json": b"\xff\xfe\x00"},
        "me/bert": configured(whole, model_type="bert"),
        "me/other-shapes": whole | {"model.safetensors": files_in(folder / "narrow")["model.safetensors"]},
        "me/lacking": whole | {"model.safetensors": save(tensors, {"format": "pt"})},
        "me/truncated": whole | {"model.safetensors": weights[: len(weights) // 2]},
        "me/emptied": whole | {"model.safetensors": b""},
        "me/without-weights": {"config.json": whole["config.json"]},
        "me/new-task": configured(whole, task="haiku", **newer),
        "me/new-architecture": configured(whole, architecture="orchid", **newer),
    }
    code = """
    import json, sys
    from traceback import format_exception
    from typer.testing import CliRunner
    from hf_reloss.cli import app

    for name in sys.argv[1:]:
        result = CliRunner().invoke(app, ["inspect", name])
        crash = [] if isinstance(result.exception, SystemExit) else format_exception(result.exception)
        print(json.dumps([result.exit_code, "".join([result.stdout, *crash])]))
    """
    with running_hub() as hub:
        for name, files in found.items():
            hub.publish(name, files)
        lines = said(client_of(hub, folder)(code, *found)).splitlines()
    return dict(zip(found, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_whole_surrogate_is_refused_by_name_with_the_reason(inspected, name):
    exit_code, output = inspected[name]
    assert exit_code == 1
    error = complaint(output).lower()
    for words in (name, *UNUSABLE[name]):
        assert words in error
