"""The program for semantic segmentation, in this process on boxes of two colours."""

import json

import numpy as np
import pytest

from .test_programs import folder, run_here

__all__ = ["folder", "run_here"]  # fixtures

SEGFORMER = (
    "--model_type segformer --image_size 16 --config_overrides num_encoder_blocks=2,depths=[1,1],sr_ratios=[2,1],"
    "hidden_sizes=[8,16],patch_sizes=[3,3],strides=[2,2],num_attention_heads=[1,2],mlp_ratios=[2,2],"
    "decoder_hidden_size=16,drop_path_rate=0.0"
)
TRAIN = f"--do_train --do_eval --save_strategy no {SEGFORMER} --train_file boxes.npz --validation_file boxes.npz"


@pytest.fixture(autouse=True)
def boxes(folder):
    """Images of 20×20 pixels, black with a red or a blue box, classes 1 and 2; pixels of the first row are unknown."""
    generator = np.random.default_rng(0)
    images, masks = np.zeros((96, 20, 20, 3), np.uint8), np.zeros((96, 20, 20), np.uint8)
    for number in range(96):
        top, left = generator.integers(0, 10, 2)
        images[number, top : top + 9, left : left + 9, 2 * (number % 2)] = 255
        masks[number, top : top + 9, left : left + 9] = 1 + number % 2
    masks[:, :2] = 255
    np.savez(folder / "boxes.npz", image=images, mask=masks)
    np.savez(folder / "flat.npz", image=images, mask=np.zeros_like(masks))
    np.savez(folder / "coloured.npz", image=images, mask=images)


def test_it_trains_on_mean_iou_and_a_saved_model_is_evaluated_alike(folder, run_here):
    flags = f"{TRAIN} --num_train_epochs 8 --per_device_train_batch_size 8 --learning_rate 2e-2"
    output = run_here("semantic_segmentation.py", f"{flags} --class_names wall red blue")
    results = json.loads((output / "all_results.json").read_text())
    assert results["eval_mean_iou"] > 0.6
    assert results["eval_pixel_accuracy"] > results["eval_mean_iou"]
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "wall", "1": "red", "2": "blue"}
    output.rename(folder / "boxes")
    again = run_here("semantic_segmentation.py", "--do_eval --model_name_or_path boxes --validation_file boxes.npz")
    evaluated = json.loads((again / "eval_results.json").read_text())
    assert evaluated["eval_mean_iou"] == pytest.approx(results["eval_mean_iou"], abs=1e-6)


def test_hand_made_losses_are_taken_by_their_names(run_here):
    output = run_here("semantic_segmentation.py", f"{TRAIN} --loss dice --max_steps 2 --metric dice")
    assert 0 <= json.loads((output / "eval_results.json").read_text())["eval_dice"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_file boxes.txt", "no .npz file"),
        ("--train_file flat.npz", "hold one class only"),
        ("--train_file coloured.npz", r"masks \[96, 20, 20, 3\] \(uint8\)"),
        ("--train_file boxes.npz --label_column labels", "pass --label_column"),
    ],
)
def test_what_it_cannot_read_is_refused(run_here, flags, message):
    with pytest.raises(ValueError, match=message):
        run_here("semantic_segmentation.py", f"--do_train {SEGFORMER} {flags}")
