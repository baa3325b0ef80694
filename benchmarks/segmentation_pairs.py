"""Pairs of images with maps of classes and a metric, for benchmarks/promise.py."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pairs import Pair
from PIL import Image
from task import data_folder
from torch import nn
from transformers import Trainer
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_reloss import hand_made_loss
from hf_reloss.metrics import load_metric
from hf_reloss.surrogates.segmentation import SurrogateForSegmentation

CLASSES, UNLABELLED = 11, 11


class Streets(torch.utils.data.Dataset):
    """Images [n, 3, H, W] uint8 and maps [n, H, W] uint8, in a mirror at random where they are `varied`."""

    def __init__(self, images: torch.Tensor, maps: torch.Tensor, varied: bool = False):
        self.images, self.maps, self.varied = images, maps, varied

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, labels = self.images[index].float() / 127.5 - 1, self.maps[index].long()
        if self.varied and torch.rand(()) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        return {"pixel_values": image, "labels": labels.masked_fill(labels == UNLABELLED, 255)}


class SmallUNet(nn.Module):
    """Three scales below half the resolution of the image, 169,000 weights; logits are at half of it."""

    def __init__(self, classes: int = CLASSES, width: int = 16):
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

        wide = [width, 2 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList(block(a, b, 2) for a, b in zip([3, *wide[:-1]], wide, strict=True))
        self.up = nn.ModuleList(block(a + b, b) for a, b in zip(wide[:0:-1], wide[-2::-1], strict=True))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SemanticSegmenterOutput:
        found = []
        for layer in self.down:
            pixel_values = layer(pixel_values)
            found.append(pixel_values)
        for layer, finer in zip(self.up, found[-2::-1], strict=True):
            size = finer.shape[-2:]
            pixel_values = layer(torch.cat([F.interpolate(pixel_values, size=size, mode="bilinear"), finer], dim=1))
        logits = self.head(pixel_values)
        loss = None
        if labels is not None:
            full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(full, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


def streets(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and maps of a part of CamVid, 160×120."""
    with np.load(data_folder() / "camvid" / f"{part}.npz") as file:
        jpeg, offsets, maps = file["jpeg"].tobytes(), file["offsets"], file["mask"]
    images = [np.asarray(Image.open(io.BytesIO(jpeg[a:b])).convert("RGB")) for a, b in itertools.pairwise(offsets)]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1), torch.from_numpy(maps)


def camvid_mean_iou() -> Pair:
    """CamVid, 367 street scenes of 160×120, a small U-Net from scratch; mean IoU of 11 classes."""
    metric, test = load_metric("mean_iou", num_labels=CLASSES), Streets(*streets("test"))

    def score(trainer: Trainer) -> float:
        found = trainer.predict(test)
        logits, labels = (torch.from_numpy(np.asarray(part)) for part in (found.predictions, found.label_ids))
        full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return 100 * metric.compute(full, labels)

    return Pair(
        train=Streets(*streets("train"), varied=True),
        development=Streets(*streets("dev")),
        test=test,
        make_model=SmallUNet,
        recipe={
            "num_train_epochs": 12,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 50,
            "learning_rate": 4e-3,
            "weight_decay": 0.01,
            "warmup_steps": 0.1,
        },
        metric=metric,
        field_loss=lovasz,
        kind=SurrogateForSegmentation,
        score=score,
    )


def lovasz(pair: Pair) -> Callable[..., torch.Tensor]:
    """Lovász-Softmax and cross-entropy, half and half (Berman et al. 2018)."""
    found = hand_made_loss("lovasz", task="segmentation")

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return found(outputs, labels)

    return loss


SEGMENTATION_PAIRS: dict[str, Callable[[], Pair]] = {"camvid_mean_iou": camvid_mean_iou}
"""All of these, by name."""
