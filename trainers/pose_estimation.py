"""Human pose estimation, from crops of single persons, on a learned surrogate of PCK or on the mean squared error.

With files of your own, from a pretrained backbone (or, if it is one, a trained pose model):

    python trainers/pose_estimation.py \
        --train_file train.npz --validation_file dev.npz --image_size 256 \
        --joint_pairs "[[0,5],[1,4],[2,3],[6,11],[7,10],[8,9]]" --model_name_or_path microsoft/resnet-50 \
        --loss reloss --surrogate auto --metric pck --metric_options '{"alpha": 0.1}' \
        --do_train --do_eval --num_train_epochs 20 --learning_rate 1e-3 --output_dir pose-reloss

From scratch on two processes:

    accelerate launch --num_processes 2 trainers/pose_estimation.py \
        --train_file train.npz --validation_file dev.npz \
        --model_type resnet --deconvolutions 64 64 \
        --config_overrides "embedding_size=32,hidden_sizes=[32,64,128],depths=[1,1,1],layer_type=basic" \
        --do_train --do_eval --output_dir pose-scratch

An .npz file holds `keypoints` [n, K, 2], x and y in pixels of the image, whose centres are at integers; `visible`
[n, K], above 0 where a joint is labelled; and images, uint8: `image` [n, height, width, 3], or JPEG files end to end as
`jpeg`, with `offsets` [n + 1]. A data set on the Hub has the columns `image`, `keypoints` and `visible`.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import (
    DatasetArguments,
    ModelArguments,
    check_columns,
    divide,
    load_config,
    load_splits,
    packed_images,
    run,
    set_up,
    trainer_of_loss,
    wanted_metric,
)
from pictures import PictureProcessor, checkpoint_processor, plain_processor
from pose_network import SimplePoseConfig, SimplePoseModel
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    PreTrainedConfig,
)

from hf_reloss import Metric, ReLossTrainingArguments
from hf_reloss.losses.heatmaps import decode_heatmaps
from hf_reloss.metrics.keypoints import PCK


@dataclass
class PoseDataArguments(DatasetArguments):
    """DatasetArguments, for images of persons. Local data are .npz files."""

    image_column: str = field(default="image", metadata={"help": "The column of images."})
    keypoint_column: str = field(default="keypoints", metadata={"help": "The column of joints, x and y each."})
    visible_column: str = field(default="visible", metadata={"help": "The column of which joints are labelled."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width that images are resized to; by default those of the first one."},
    )
    joint_pairs: str | None = field(
        default=None,
        metadata={"help": "As JSON, the pairs of joints that a mirror swaps: half of the images are trained on so."},
    )


@dataclass
class PoseModelArguments(ModelArguments):
    """ModelArguments: a backbone with deconvolutions, unless --model_name_or_path is a pose model."""

    metric: str = field(default="pck", metadata={"help": "The metric that is reported, and that auto learns."})
    deconvolutions: list[int] = field(
        default_factory=lambda: [256, 256, 256],
        metadata={"help": "Channels of each deconvolution behind a backbone."},
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((PoseDataArguments, PoseModelArguments, ReLossTrainingArguments))


def load_file(path: str) -> datasets.Dataset:
    """Images with joints from the arrays of an .npz file."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path} is no .npz file.")
    with np.load(path) as file:
        images = packed_images(path, file, "keypoints", "visible")
        points, visible = (file[name].astype(np.float32) for name in ("keypoints", "visible"))
    if points.shape != (len(images), *visible.shape[1:], 2) or visible.ndim != 2:
        raise ValueError(
            f"{path} has {len(images)} images, keypoints {list(points.shape)} and visible {list(visible.shape)}, but "
            "[n, K, 2] and [n, K] are wanted."
        )
    numbers = datasets.List(datasets.Value("float32"))
    return datasets.Dataset.from_dict(
        {"image": images, "keypoints": points, "visible": visible},
        features=datasets.Features(image=datasets.Image(), keypoints=datasets.List(numbers), visible=numbers),
    )


def make_model(model_args: PoseModelArguments, num_joints: int) -> SimplePoseModel:
    """A trained pose model; or a new one, whose backbone may be trained. In float32: --bf16 is autocast.

    Raises:
        ValueError: if a trained model has another number of joints.
    """
    config = load_config(model_args)
    if not isinstance(config, SimplePoseConfig):
        new = SimplePoseConfig(backbone_config=config, num_joints=num_joints, deconvolutions=model_args.deconvolutions)
        model = SimplePoseModel(new)
        if model_args.model_name_or_path:
            kind = type(model.backbone)  # AutoBackbone itself would ask the Hub about a folder
            model.backbone = kind.from_pretrained(model_args.model_name_or_path, dtype=torch.float32)
        return model
    if config.num_joints != num_joints:
        raise ValueError(
            f"{model_args.model_name_or_path} was trained for {config.num_joints} joints, but the data have "
            f"{num_joints}."
        )
    return SimplePoseModel.from_pretrained(model_args.model_name_or_path, dtype=torch.float32)


def make_processor(model_args: PoseModelArguments, config: PreTrainedConfig, size: int) -> PictureProcessor:
    """Resizes, scales and normalises: as the checkpoint's own image processor, or plainly."""
    trained = checkpoint_processor(model_args.model_name_or_path)
    return plain_processor(size, size, getattr(config, "num_channels", 3), trained)


def processed(
    data: datasets.Dataset | None,
    data_args: PoseDataArguments,
    processor: Any,
    heatmap_size: tuple[int, int],
    pairs: list[tuple[int, int]],
) -> datasets.Dataset | None:
    """The data as tensors, made when they are read: images, and labels [K, 3] in pixels of heatmaps.

    Args:
        heatmap_size: height and width.
        pairs: of joints that a mirror swaps: half of the images, at random, are seen in one. None are, if it is empty.
    """
    if data is None:
        return None
    images, points, visible = data_args.image_column, data_args.keypoint_column, data_args.visible_column
    order = {joint: other for pair in pairs for joint, other in (pair, pair[::-1])}

    def transform(batch: dict[str, list]) -> dict[str, list]:
        labels = []
        pictures = [image.convert("RGB") for image in batch[images]]
        for image, joints, seen in zip(pictures, batch[points], batch[visible], strict=True):
            scale = torch.tensor(heatmap_size[::-1]) / torch.tensor(image.size)
            places = (torch.tensor(joints, dtype=torch.float32) + 0.5) * scale - 0.5
            labels.append(torch.cat([places, torch.tensor(seen, dtype=torch.float32)[:, None]], dim=-1))
        pixels = torch.from_numpy(np.stack(processor(pictures, return_tensors="np")["pixel_values"]))
        for row in range(len(labels)) if pairs else ():
            if torch.rand(()) < 0.5:
                mirrored = labels[row][[order.get(joint, joint) for joint in range(len(labels[row]))]]
                mirrored[:, 0] = heatmap_size[1] - 1 - mirrored[:, 0]
                labels[row], pixels[row] = mirrored, pixels[row].flip(-1)
        return {"pixel_values": pixels, "labels": labels}

    return data.with_transform(transform, columns=[images, points, visible])


def metric_of_heatmaps(metric: PCK, stride: float) -> PCK:
    """The metric in pixels of heatmaps, of which one is `stride` pixels of the image."""
    is_number = isinstance(metric.length, int | float)
    return dataclasses.replace(metric, length=metric.length / stride) if is_number else metric


def scorer(metric: Metric, stride: float) -> Callable[[EvalPrediction], dict[str, float]]:
    """What a Trainer calls to evaluate decoded joints, in pixels of the images that the model is given."""

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        predictions, labels = (
            torch.as_tensor(array).clone() for array in (evaluation.predictions, evaluation.label_ids)
        )
        for points in (predictions, labels):
            points[..., :2] = (points[..., :2] + 0.5) * stride - 0.5
        return {metric.name: metric.compute(predictions, labels)}

    return compute_metrics


def decoded(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Joints [N, K, 2] of heatmaps, which are not kept."""
    return decode_heatmaps(outputs[0] if isinstance(outputs, tuple | list) else outputs)


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    args.remove_unused_columns = False  # the columns are used, by the transform
    set_up(args)
    metric = wanted_metric(model_args)
    if not isinstance(metric, PCK):
        raise ValueError(f"Joints alone are scored with --metric pck, but got {model_args.metric!r}.")
    with args.main_process_first(desc="loading the data"):
        train, validation = divide(*load_splits(data_args, model_args, args, load_file), data_args, args)
    first = next(data for data in (train, validation) if data is not None)
    columns = {name: getattr(data_args, name) for name in ("image_column", "keypoint_column", "visible_column")}
    check_columns(first, **columns)
    size = data_args.image_size or first[0][data_args.image_column].height
    model = make_model(model_args, len(first[0][data_args.visible_column]))
    processor = make_processor(model_args, model.config.backbone_config, size)
    with torch.no_grad():
        blank = torch.zeros(1, getattr(model.config.backbone_config, "num_channels", 3), size, size)
        height, width = model.eval()(blank).heatmaps.shape[-2:]

    pairs = json.loads(data_args.joint_pairs or "[]")
    train = processed(train, data_args, processor, (height, width), pairs)
    validation = processed(validation, data_args, processor, (height, width), [])
    trainer = trainer_of_loss(
        model_args,
        metric_of_heatmaps(metric, size / height),
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=scorer(metric, size / height),
        preprocess_logits_for_metrics=decoded,
    )
    run(trainer, data_args, task="keypoint-detection")


if __name__ == "__main__":
    main()
