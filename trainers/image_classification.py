"""Image classification on a learned surrogate of the metric, or on cross-entropy.

With a data set from the Hub, from scratch:

    python trainers/image_classification.py \
        --dataset_name zalando-datasets/fashion_mnist --validation_split_name test \
        --model_type resnet --image_size 32 \
        --config_overrides "num_channels=1,embedding_size=32,hidden_sizes=[32,64,128],depths=[2,2,2],layer_type=basic" \
        --loss reloss --surrogate auto --metric accuracy \
        --do_train --do_eval --num_train_epochs 12 --learning_rate 1e-3 --per_device_train_batch_size 128 \
        --output_dir fashion-mnist-reloss

With images of your own, in a folder for each class or as arrays in an .npz file, from a checkpoint on two processes:

    accelerate launch --num_processes 2 trainers/image_classification.py \
        --train_file photos/train --validation_file photos/validation \
        --model_name_or_path google/vit-base-patch16-224-in21k \
        --do_train --do_eval --output_dir photos-reloss
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import DataArguments, ModelArguments, check_columns, load_config, load_data, make_trainer, run, set_up
from pictures import checkpoint_processor, plain_processor
from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedConfig,
)

from hf_reloss import ReLossTrainingArguments


@dataclass
class ImageDataArguments(DataArguments):
    """DataArguments, for images. A local one is a folder with a folder for each class, or an .npz file."""

    image_column: str = field(default="image", metadata={"help": "The column of images."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width that images are resized to; by default those of the checkpoint or 224."},
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((ImageDataArguments, ModelArguments, ReLossTrainingArguments))


def load_file(path: str) -> datasets.Dataset:
    """Images with labels from a folder for each class, or from the arrays `images` and `labels` of an .npz file."""
    if Path(path).is_dir():
        return datasets.load_dataset("imagefolder", data_dir=path, split="train", drop_labels=False)
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path} is neither a folder of images nor an .npz file.")
    with np.load(path) as arrays:
        if not {"images", "labels"} <= set(arrays):
            raise ValueError(f"{path} holds {sorted(arrays)}, but the arrays 'images' and 'labels' are wanted.")
        images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise ValueError(
            "images must be uint8 [n, H, W] or [n, H, W, C] and labels [n], but they are "
            f"{images.dtype} {list(images.shape)} and {list(labels.shape)}."
        )
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    data = datasets.Dataset.from_dict({"image": list(images)}, features=datasets.Features(image=datasets.Image()))
    return data.add_column("label", labels.tolist())


def make_processor(data_args: ImageDataArguments, model_args: ModelArguments, config: PreTrainedConfig) -> Any:
    """The checkpoint's image processor, or a plain one: resize, scale and normalise."""
    trained = checkpoint_processor(model_args.model_name_or_path)
    if trained is not None and data_args.image_size is None:
        return trained
    size = data_args.image_size or getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return plain_processor(height, width, getattr(config, "num_channels", 3), trained)


def processed(
    data: datasets.Dataset | None, column: str, processor: Any, config: PreTrainedConfig
) -> datasets.Dataset | None:
    """The data as tensors, made when they are read."""
    if data is None:
        return None
    check_columns(data, image_column=column)
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"

    def transform(batch: dict[str, list]) -> dict[str, list]:
        images = [image.convert(mode) for image in batch[column]]
        return {"pixel_values": processor(images, return_tensors="np")["pixel_values"], "labels": batch["labels"]}

    return data.with_transform(transform, columns=[column, "labels"])


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    args.remove_unused_columns = False  # the column of images is used, by the transform
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        train, validation, names = load_data(data_args, model_args, args, load_file)

    sizes = {} if data_args.image_size is None else {"image_size": data_args.image_size}
    config = load_config(model_args, names, **sizes)
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        model = AutoModelForImageClassification.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)

    processor = make_processor(data_args, model_args, config)
    train, validation = (processed(data, data_args.image_column, processor, config) for data in (train, validation))
    trainer = make_trainer(
        model_args, model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=processor
    )
    run(trainer, data_args, task="image-classification")


if __name__ == "__main__":
    main()
