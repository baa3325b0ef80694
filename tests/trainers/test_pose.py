"""The program that trains pose models, on images whose joints are spots of a colour of their own."""

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, ResNetBackbone, ResNetConfig

from hf_reloss import AutoSurrogate, load_metric
from hf_reloss.losses.heatmaps import decode_heatmaps, gaussian_targets
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints

from . import test_programs
from .test_programs import TRAINERS, launch, logged

if str(TRAINERS) not in sys.path:
    sys.path.append(str(TRAINERS))
from pictures import PictureProcessor  # the programs' own

run_here = test_programs.run_here

RESNET = "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
TRAIN = "--do_train --do_eval --learning_rate 1e-2 --per_device_train_batch_size 16 --save_strategy no"
FILES = "--train_file train.npz --validation_file dev.npz"
SCRATCH = f"--model_type resnet --config_overrides {RESNET} --deconvolutions 16"


def persons(count: int, seed: int) -> dict[str, np.ndarray]:
    """Images [n, 32, 32, 3] with three joints, of which the last one is not always labelled."""
    chance = np.random.default_rng(seed)
    points = chance.uniform(3, 28, (count, 3, 2)).astype(np.float32)
    rows, columns = np.mgrid[:32, :32]
    distances = (columns - points[..., :1, None]) ** 2 + (rows - points[..., 1:, None]) ** 2
    images = chance.integers(0, 40, (count, 32, 32, 3)) + 200 * np.exp(-distances / 8).transpose(0, 2, 3, 1)
    visible = np.ones((count, 3), np.uint8)
    visible[::4, 2] = 0
    points[::4, 2] = -1
    return {"image": images.astype(np.uint8), "keypoints": points, "visible": visible}


def as_jpeg(images: np.ndarray) -> dict[str, np.ndarray]:
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    return {"jpeg": np.concatenate(files), "offsets": np.cumsum([0, *map(len, files)])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a backbone and a surrogate, in which the program is run."""
    folder = tmp_path_factory.mktemp("pose")
    train, dev = persons(192, seed=0), persons(40, seed=1)
    np.savez(folder / "train.npz", **train)
    np.savez(folder / "dev.npz", **as_jpeg(dev.pop("image")), **dev)
    np.savez(folder / "two_joints.npz", image=train["image"], **{k: train[k][:, :2] for k in ("keypoints", "visible")})
    np.savez(folder / "wrong.npz", image=train["image"], keypoints=train["keypoints"], visible=train["visible"][:, :2])
    np.savez(folder / "nothing.npz", keypoints=train["keypoints"])
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetBackbone(config).save_pretrained(folder / "backbone")
    PictureProcessor(image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(folder / "backbone")
    SurrogateForKeypoints.for_metric(load_metric("pck", alpha=0.1)).save_pretrained(folder / "my_surrogate")
    return folder


@pytest.fixture
def network(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    import pose_network

    return pose_network


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(TRAINERS)
    import pose_estimation

    return pose_estimation


def results_of(output: Path) -> dict:
    results = json.loads((output / "all_results.json").read_text())
    return {**results, "state": json.loads((output / "trainer_state.json").read_text())}


# Whole runs


def test_on_the_mean_squared_error(run_here, folder, network):
    flags = f"{TRAIN} {SCRATCH} {FILES} --loss ce --num_train_epochs 3"
    output = run_here("pose_estimation.py", flags)
    results = results_of(output)
    assert results["eval_samples"] == 40
    assert results["eval_pck"] > 0.6
    assert not (output / "surrogate").exists()
    # As the saved model, with the saved processor in front of it, does on its own.
    model = network.SimplePoseModel.from_pretrained(output).eval()
    processor = PictureProcessor.from_pretrained(output)
    with np.load(folder / "dev.npz") as dev:
        jpeg, offsets, points, visible = (dev[name] for name in ("jpeg", "offsets", "keypoints", "visible"))
    images = [Image.open(io.BytesIO(jpeg[start:end].tobytes())) for start, end in itertools.pairwise(offsets)]
    with torch.no_grad():
        heatmaps = model(**processor(images, return_tensors="pt")).heatmaps
    assert heatmaps.shape == (40, 3, 8, 8)
    found = 4 * (decode_heatmaps(heatmaps) + 0.5) - 0.5
    truth = torch.cat([torch.from_numpy(points), torch.from_numpy(visible)[..., None]], dim=-1)
    assert results["eval_pck"] == pytest.approx(load_metric("pck").compute(found, truth))


def test_on_a_saved_surrogate_from_a_pretrained_backbone(run_here, folder):
    flags = f"{TRAIN} {FILES} --model_name_or_path backbone --deconvolutions 16 --surrogate my_surrogate"
    output = run_here("pose_estimation.py", f"{flags} --num_train_epochs 3 --joint_pairs [[0,1]]")
    results = results_of(output)
    assert results["eval_pck"] > 0.3
    assert AutoSurrogate.from_pretrained(output / "surrogate").config.scores == {
        "pck": {"alpha": 0.1, "length": "extent"}
    }
    assert json.loads((output / "preprocessor_config.json").read_text())["image_mean"] == [0.4] * 3


def test_auto_learns_a_surrogate_in_the_run(run_here):
    flags = f"{TRAIN} {SCRATCH} {FILES} --surrogate_warmup 14 --num_train_epochs 2"
    output = run_here("pose_estimation.py", flags)
    results = results_of(output)
    assert results["state"]["global_step"] == 24
    assert logged(results, "surrogate_alignment")[0] > 0.5
    assert AutoSurrogate.from_pretrained(output / "surrogate").config.metric == load_metric("pck").signature
    assert results["eval_pck"] > 0.5


@pytest.mark.parametrize("loss", ["--surrogate my_surrogate", "--surrogate_warmup 7"])
def test_two_processes_train_one_model_and_score_every_image_once(folder, loss):
    output = loss.split()[0].removeprefix("--")
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    flags = f"{TRAIN} {SCRATCH} {FILES} {loss} --num_train_epochs 2 --use_cpu --output_dir {output}"
    run = launch(folder, "pose_estimation.py", flags, launcher)
    assert run.returncode == 0, run.stderr[-5000:]
    results = results_of(folder / output)
    assert results["state"]["global_step"] == 12  # 192 images twice, 16 for each of two processes
    assert results["eval_samples"] == 40
    learned = AutoSurrogate.from_pretrained(folder / output / "surrogate").config.record
    assert (learned is not None) == ("warmup" in loss)
    assert 0.05 < results["eval_pck"] <= 1


def test_a_trained_model_goes_on_or_is_evaluated(run_here, folder, network, tmp_path):
    config = network.SimplePoseConfig(
        backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        num_joints=3,
        deconvolutions=[16],
    )
    model = network.SimplePoseModel(config)
    model.save_pretrained(folder / "trained")
    PictureProcessor().save_pretrained(folder / "trained")
    flags = "--do_eval --model_name_or_path trained --validation_file dev.npz --loss ce"
    output = run_here("pose_estimation.py", flags)
    assert 0 <= json.loads((output / "eval_results.json").read_text())["eval_pck"] <= 1
    flags = "--do_train --model_name_or_path trained --train_file two_joints.npz --loss ce"
    with pytest.raises(ValueError, match="trained for 3 joints, but the data have 2"):
        run_here("pose_estimation.py", flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_file train.txt", "no .npz file"),
        ("--train_file nothing.npz", r"holds \['keypoints'\]"),
        ("--train_file wrong.npz", r"keypoints \[192, 3, 2\] and visible \[192, 2\]"),
        ("--train_file train.npz --metric accuracy", "--metric pck, but got 'accuracy'"),
        ("--train_file train.npz --visible_column seen", "pass --visible_column"),
    ],
)
def test_what_it_cannot_read_is_refused(run_here, flags, message):
    with pytest.raises(ValueError, match=message):
        run_here("pose_estimation.py", f"--do_train {SCRATCH} {flags}")


# Its parts


def test_labels_are_in_pixels_of_heatmaps_and_a_mirror_swaps_joints(program):
    import datasets

    points = [[[0.0, 0.0], [31.0, 15.5], [7.0, 20.0]]]
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, :, :16] = 255
    features = datasets.Features(
        image=datasets.Image(),
        keypoints=datasets.List(datasets.List(datasets.Value("float32"))),
        visible=datasets.List(datasets.Value("float32")),
    )
    data = datasets.Dataset.from_dict(
        {"image": list(image), "keypoints": points, "visible": [[1, 0, 2]]}, features=features
    )
    processor = PictureProcessor(size={"height": 64, "width": 64})
    plain = program.processed(data, program.PoseDataArguments(), processor, (16, 16), [])[0]
    # Half a pixel of a heatmap is a pixel of the image: pixels' edges fall together, not their centres.
    expected = torch.tensor([[-0.25, -0.25, 1.0], [15.25, 7.5, 0.0], [3.25, 9.75, 2.0]])
    torch.testing.assert_close(plain["labels"], expected)
    assert plain["pixel_values"].shape == (3, 64, 64)
    torch.manual_seed(0)
    mirrored = program.processed(data, program.PoseDataArguments(), processor, (16, 16), [(0, 2)])
    seen = [mirrored[0] for _ in range(20)]
    turned = [row for row in seen if not torch.equal(row["pixel_values"], plain["pixel_values"])]
    assert 3 < len(turned) < 17
    torch.testing.assert_close(turned[0]["pixel_values"], plain["pixel_values"].flip(-1))
    across = torch.tensor([[11.75, 9.75, 2.0], [-0.25, 7.5, 0.0], [15.25, -0.25, 1.0]])
    torch.testing.assert_close(turned[0]["labels"], across)


def test_a_length_in_pixels_of_the_image_is_shorter_in_those_of_heatmaps(program):
    metric = load_metric("pck", alpha=0.5, length=8.0)
    assert program.metric_of_heatmaps(metric, 4.0) == load_metric("pck", alpha=0.5, length=2.0)
    assert program.metric_of_heatmaps(load_metric("pck"), 4.0) == load_metric("pck")


def small_model(network, **config):
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    backbone["layer_type"] = "basic"
    return network.SimplePoseModel(
        network.SimplePoseConfig(backbone_config=backbone, num_joints=3, deconvolutions=[8], **config)
    )


def test_the_models_own_loss_is_the_squared_error_of_labelled_joints(network):
    model = small_model(network, sigma=1.5).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), 7 * torch.rand(2, 3, 3)
    labels[0, 0, 2], labels[1, 1, 0] = 0.0, torch.nan
    outputs = model(pixels, labels)
    counts = torch.ones(2, 3, dtype=torch.bool)
    counts[0, 0] = counts[1, 1] = False
    errors = (outputs.heatmaps - gaussian_targets(labels[..., :2], 8, 8, 1.5)).square().mean((-2, -1))
    torch.testing.assert_close(outputs.loss, errors[counts].mean())
    nothing = model(pixels, torch.zeros(2, 3, 3)).loss
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    assert model(pixels).loss is None


def test_a_saved_model_is_the_same(network, tmp_path):
    model = small_model(network).eval()
    model.save_pretrained(tmp_path)
    loaded = network.SimplePoseModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels).heatmaps, model(pixels).heatmaps)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), network.SimplePoseConfig)
    assert "head.weight" in load_file(tmp_path / "model.safetensors")


def test_each_deconvolution_doubles_the_size(network):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic")
    for deconvolutions, size in (([], 4), ([8], 8), ([8, 8], 16)):
        config = network.SimplePoseConfig(backbone_config=backbone, num_joints=5, deconvolutions=deconvolutions)
        heatmaps = network.SimplePoseModel(config)(torch.zeros(1, 3, 64, 64)).heatmaps
        assert heatmaps.shape == (1, 5, size, size)
