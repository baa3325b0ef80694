"""Leeds Sports Pose, extended training set: 14 joints in crops of 64×64, with a small network from scratch.

The validation split is the last 1,000 of the 5,000 training images; while it is in use, the others are trained on.
"""

import dataclasses
import functools
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from task import Task, data_folder

from hf_reloss import load_metric
from hf_reloss.losses.heatmaps import decode_heatmaps
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints

sys.path.append(str(Path(__file__).parents[1] / "trainers"))
from pose_network import SimplePoseConfig, SimplePoseModel  # the program's own

STRIDE = 4
"""Pixels of an image to one of a heatmap."""

MIRRORED = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13]
"""Which joint each is in a mirror."""

RECIPE = {
    "num_train_epochs": 12,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 250,
    "learning_rate": 4e-3,  # one try
    "weight_decay": 0.01,
    "warmup_steps": 0.05,
}


class Bodies(torch.utils.data.Dataset):
    """Images and joints in memory.

    Args:
        images: uint8 [n, 3, 64, 64].
        labels: float32 [n, 14, 3], x and y in pixels of heatmaps, and visibility.
        mirrored: whether half of the images, at random each time, are seen in a mirror.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, mirrored: bool = False):
        self.images, self.labels, self.mirrored = images, labels, mirrored

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, labels = self.images[index], self.labels[index]
        if self.mirrored and torch.rand(()) < 0.5:
            image, labels = image.flip(-1), labels[MIRRORED]
            across = image.shape[-1] // STRIDE - 1 - labels[:, 0]
            labels = torch.cat([across[:, None], labels[:, 1:]], dim=-1)
        return {"pixel_values": (image / 255 - 0.45) / 0.26, "labels": labels}


@functools.cache
def bodies(part: str) -> Bodies:
    """All of a file's, train or dev."""
    with np.load(data_folder() / "lsp_pose" / f"{part}.npz") as arrays:
        jpeg, offsets = arrays["jpeg"], arrays["offsets"]
        points, visible = torch.from_numpy(arrays["keypoints"]), torch.from_numpy(arrays["visible"])
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB"))
        for start, end in itertools.pairwise(offsets)
    ]
    labels = torch.cat([(points + 0.5) / STRIDE - 0.5, visible[..., None].float()], dim=-1)
    return Bodies(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels)


def make_model() -> SimplePoseModel:
    """0.5 million weights, and some 20 million multiplications to an image."""
    backbone = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 32}
    backbone |= {"hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}
    return SimplePoseModel(SimplePoseConfig(backbone_config=backbone, num_joints=14, deconvolutions=[64, 64]))


def pck(heatmaps: torch.Tensor, labels: torch.Tensor, alpha: float) -> float:
    """PCK of decoded heatmaps; it is the same in pixels of images."""
    return load_metric("pck", alpha=alpha).compute(decode_heatmaps(heatmaps), labels)


def lsp(split: str) -> Task:
    """Leeds Sports Pose: PCK within a tenth, and a fifth, of the joints' extent."""
    everything = bodies("train")
    held_out = 0 if split == "test" else 1_000
    last = len(everything) - held_out
    train = Bodies(everything.images[:last], everything.labels[:last], mirrored=True)
    evaluation = bodies("dev") if split == "test" else Bodies(everything.images[last:], everything.labels[last:])
    return Task(
        train=train,
        evaluation=evaluation,
        make_model=make_model,
        recipe=RECIPE,
        metric=load_metric("pck", alpha=0.1),
        kind=SurrogateForKeypoints,
        structure={"num_pixels": (64 // STRIDE) ** 2},
        measures={"pck@0.1": functools.partial(pck, alpha=0.1), "pck@0.2": functools.partial(pck, alpha=0.2)},
        original="mean_squared_error",
        baselines={"mean_squared_error": lambda outputs, inputs: outputs["loss"]},  # the model's own
        learning={"group_size": 32, "num_groups": 512, "num_eval_groups": 256, "num_train_epochs": 4}
        | {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 32},
        losses=("mean_squared_error", "reloss", "unlearned", "paper"),
    )


def lsp_bottlenecks(split: str) -> Task:
    """Leeds Sports Pose with a network of twice as many layers, narrow ones."""
    backbone = {"model_type": "resnet", "layer_type": "bottleneck", "embedding_size": 32}
    backbone |= {"hidden_sizes": [48, 96, 192], "depths": [2, 2, 2]}
    config = SimplePoseConfig(backbone_config=backbone, num_joints=14, deconvolutions=[32, 32])
    return dataclasses.replace(
        lsp(split), make_model=lambda: SimplePoseModel(config), card="pck", losses=("mean_squared_error", "transferred")
    )


TASKS = (lsp, lsp_bottlenecks)
