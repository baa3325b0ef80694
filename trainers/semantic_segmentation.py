"""Semantic segmentation, a class for each pixel, on a learned surrogate of mean IoU or on cross-entropy.

With a data set from the Hub, from a pretrained backbone:

    python trainers/semantic_segmentation.py \
        --dataset_name segments/sidewalk-semantic --image_column pixel_values --label_column label --ignore_label 0 \
        --model_name_or_path nvidia/mit-b0 --image_size 512 --loss reloss --surrogate auto --metric mean_iou \
        --do_train --do_eval --num_train_epochs 50 --learning_rate 6e-5 --output_dir sidewalk-reloss

With files of your own, from scratch:

    python trainers/semantic_segmentation.py \
        --train_file train.npz --validation_file dev.npz --model_type segformer \
        --config_overrides "hidden_sizes=[16,32,80,128],depths=[1,1,1,1],decoder_hidden_size=64" \
        --do_train --do_eval --output_dir streets-reloss

An .npz file holds `mask` [n, height, width], the class of each pixel, uint8; and images, uint8: `image` [n, height,
width, 3], or JPEG files end to end as `jpeg`, with `offsets` [n + 1].
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
import torch.nn.functional as F
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
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    HfArgumentParser,
)

from hf_reloss import ReLossTrainingArguments, hand_made_losses
from hf_reloss.predictions.models import metric_for


@dataclass
class SegmentationDataArguments(DatasetArguments):
    """DatasetArguments, for images with a map of classes each. Local data are .npz files."""

    image_column: str = field(default="image", metadata={"help": "The column of images."})
    label_column: str = field(default="mask", metadata={"help": "The column of maps of classes, images too."})
    ignore_label: int = field(default=255, metadata={"help": "The label of pixels that do not count."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "The names of the classes 0, 1, ...; by default these numbers."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width that images are resized to; by default those of the checkpoint or 224."},
    )


@dataclass
class SegmentationModelArguments(ModelArguments):
    """ModelArguments, for pixels."""

    loss: Literal[("ce", "reloss", *hand_made_losses("segmentation"))] = field(
        default="reloss",
        metadata={
            "help": "ce: the model's own, with a plain Trainer. reloss: a learned surrogate. Or a hand-made one."
        },
    )
    metric: str = field(default="mean_iou", metadata={"help": "The metric that is reported, and that auto learns."})


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((SegmentationDataArguments, SegmentationModelArguments, ReLossTrainingArguments))


def load_file(path: str) -> datasets.Dataset:
    """Images with maps of classes from the arrays of an .npz file."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path} is no .npz file.")
    with np.load(path) as file:
        images, masks = packed_images(path, file, "mask"), file["mask"]
    if masks.dtype != np.uint8 or masks.ndim != 3 or len(masks) != len(images):
        raise ValueError(
            f"{path} has {len(images)} images and masks {list(masks.shape)} ({masks.dtype}), but uint8 [n, height, "
            "width] is wanted."
        )
    pictures = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    return datasets.Dataset.from_dict({"image": images, "mask": list(masks)}, features=pictures)


def make_processor(data_args: SegmentationDataArguments, model_args: ModelArguments, channels: int) -> PictureProcessor:
    """Resizes, scales and normalises: with the statistics of the checkpoint's own image processor, or plainly."""
    trained = checkpoint_processor(model_args.model_name_or_path)
    size = data_args.image_size or (dict(trained.size).get("height") if trained else None) or 224
    return plain_processor(size, size, channels, trained)


def processed(
    data: datasets.Dataset | None, data_args: SegmentationDataArguments, processor: PictureProcessor
) -> datasets.Dataset | None:
    """The data as tensors, made when they are read: images, and labels [H, W] int64 of the same size."""
    if data is None:
        return None
    images, masks = data_args.image_column, data_args.label_column
    size = processor.size["width"], processor.size["height"]

    def transform(batch: dict[str, list]) -> dict[str, Any]:
        pixels = processor([image.convert("RGB") for image in batch[images]], return_tensors="np")["pixel_values"]
        labels = [np.asarray(mask.resize(size, Image.Resampling.NEAREST), np.int64) for mask in batch[masks]]
        return {"pixel_values": pixels, "labels": labels}

    return data.with_transform(transform, columns=[images, masks])


def number_of_classes(data: datasets.Dataset, column: str, ignored: int) -> int:
    """One more than the largest class in a column of maps.

    Raises:
        ValueError: for maps that are no images of one channel, or hold one class only.
    """
    largest = 0
    for row in data.select_columns([column]):
        mask = np.asarray(row[column])
        if mask.ndim != 2:
            raise ValueError(
                f"The column {column!r} wants images of one channel that hold class indices, but one has the shape "
                f"{list(mask.shape)}: convert colours to classes first."
            )
        largest = max(largest, int(mask.max(initial=0, where=mask != ignored)))
    if largest == 0:
        raise ValueError(f"The maps of the column {column!r} hold one class only: there is nothing to tell apart.")
    return largest + 1


def decided(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Maps of classes [N, H, W] of logits [N, C, h, w], brought to the size of the labels; logits are not kept."""
    logits = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    args.remove_unused_columns = False  # the columns of images are used, by the transform
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        train, validation = divide(*load_splits(data_args, model_args, args, load_file), data_args, args)
    first = next(data for data in (train, validation) if data is not None)
    check_columns(first, image_column=data_args.image_column, label_column=data_args.label_column)
    names = data_args.class_names
    if names is None and train is not None:
        classes = number_of_classes(train, data_args.label_column, data_args.ignore_label)
        names = [str(number) for number in range(classes)]
    config = load_config(model_args, names)
    config.semantic_loss_ignore_index = data_args.ignore_label
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        model = AutoModelForSemanticSegmentation.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)

    processor = make_processor(data_args, model_args, getattr(config, "num_channels", 3))
    metric = metric_for(model, wanted_metric(model_args))
    beside = metric_for(model, wanted_metric(ModelArguments(metric="pixel_accuracy")))
    metrics = {each.name: each for each in (beside, metric)}

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        return {name: each.compute(evaluation.predictions, evaluation.label_ids) for name, each in metrics.items()}

    trainer = trainer_of_loss(
        model_args,
        metric,
        model=model,
        args=args,
        train_dataset=processed(train, data_args, processor),
        eval_dataset=processed(validation, data_args, processor),
        processing_class=processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=decided,
    )
    run(trainer, data_args, task="image-segmentation")


if __name__ == "__main__":
    main()
