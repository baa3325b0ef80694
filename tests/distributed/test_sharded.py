"""FSDP and DeepSpeed, with the configurations in trainers/accelerate/, learn what one process learns."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertForSequenceClassification

from hf_reloss import AutoSurrogate

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "trainers" / "accelerate"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory) -> str:
    """Where DeepSpeed is to be found: it is no dependency, as it has to be compiled."""
    if importlib.util.find_spec("deepspeed"):
        return ""
    folder = tmp_path_factory.mktemp("deepspeed")
    packages = ["deepspeed", "einops", "hjson", "msgpack", "ninja", "py-cpuinfo"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    environment = os.environ | {"DS_BUILD_OPS": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode or shutil.which("g++") is None:
        pytest.skip(f"DeepSpeed cannot be installed here: {done.stderr[-500:]}")
    return str(folder)


def run(folder: Path, strategy: str, *cases: str, configuration: dict | None = None, path: str = "") -> dict[str, dict]:
    """The weights of each case, and those that they start from."""
    launch = []
    if configuration:
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(configuration | {"num_processes": 2}))
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.distributed.sharded", str(folder), strategy, *cases],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-14000:]
    return {file.parent.name: weights_of(file.parent) for file in folder.glob("*/model.safetensors")}


def weights_of(saved: Path) -> dict[str, torch.Tensor]:
    """Those of the model and of the surrogate beside it."""
    weights = BertForSequenceClassification.from_pretrained(saved, dtype=torch.float32).state_dict()
    if (saved / "surrogate").is_dir():
        surrogate = AutoSurrogate.from_pretrained(saved / "surrogate").state_dict()
        weights |= {f"surrogate.{name}": weight for name, weight in surrogate.items()}
    return weights


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory) -> dict[str, dict]:
    return run(tmp_path_factory.mktemp("one"), "one", "loaded", "of_groups")


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory) -> dict[str, dict]:
    configuration = yaml.safe_load((CONFIGURATIONS / "cpu.yaml").read_text())
    return run(tmp_path_factory.mktemp("data_parallel"), "data_parallel", "auto", configuration=configuration)


@pytest.fixture(scope="module", params=["fsdp", "zero2", "zero3"])
def strategy(request) -> tuple[str, dict, str]:
    """Its name, the configuration that is shipped, and where Python finds what it wants."""
    if request.param == "fsdp":
        configuration = yaml.safe_load((CONFIGURATIONS / "fsdp.yaml").read_text()) | {"mixed_precision": "no"}
        configuration["fsdp_config"] |= {"fsdp_transformer_layer_cls_to_wrap": "BertLayer"}
        return request.param, configuration, ""
    configuration = yaml.safe_load((CONFIGURATIONS / "zero3.yaml").read_text())
    if request.param == "zero2":
        configuration["deepspeed_config"] |= {"zero_stage": 2, "zero3_init_flag": False}
    return request.param, configuration, request.getfixturevalue("deepspeed")


@pytest.fixture(scope="module")
def sharded(strategy, tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    name, configuration, path = strategy
    folder = tmp_path_factory.mktemp("sharded")
    cases = "loaded", "of_groups", "auto", "resumed_before", "resumed_after"
    return folder, run(folder, name, *cases, configuration=configuration, path=path)


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_it_learns_what_one_process_learns(sharded, of_one_process):
    for case in ("loaded", "of_groups"):
        assert_same(of_one_process[case], sharded[1][case], 1e-5)


def test_auto_learns_the_surrogate_that_data_parallel_processes_learn(sharded, data_parallel):
    folder, found = sharded
    assert_same(data_parallel["auto"], found["auto"], 1e-4)
    assert not (folder / "auto" / "checkpoint-8" / "surrogate").exists()
    assert (folder / "auto" / "checkpoint-16" / "surrogate").exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_it_resumes_from_before_and_after_the_surrogate_is_learned(sharded, moment):
    assert_same(sharded[1]["auto"], sharded[1][f"resumed_{moment}"], 1e-6)


def test_it_learns_much_the_same_in_bfloat16(tmp_path, strategy, of_one_process):
    name, configuration, path = strategy
    weights = run(tmp_path, name, "bf16", configuration=configuration, path=path)
    expected, found, start = of_one_process["loaded"], weights["bf16"], weights["start_0"]

    def distance(one: dict, two: dict) -> float:
        return sum((one[name] - two[name]).square().sum() for name in start).sqrt().item()

    assert distance(expected, start) > 0.5
    # DeepSpeed's weights are themselves in bfloat16, FSDP's in float32.
    assert distance(expected, found) < 0.2 * distance(expected, start)
