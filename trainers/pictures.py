"""What the programs of pictures share: how pictures become tensors."""

from typing import Any

from transformers import AutoImageProcessor

try:
    from transformers import ViTImageProcessorPil as PictureProcessor
except ImportError:  # in the first releases of transformers 5 it is the one without a suffix
    from transformers import ViTImageProcessor as PictureProcessor


def checkpoint_processor(checkpoint: str | None) -> Any:
    """The image processor that a checkpoint was trained with; None without a checkpoint."""
    return AutoImageProcessor.from_pretrained(checkpoint) if checkpoint else None


def plain_processor(height: int, width: int, channels: int, trained: Any = None) -> PictureProcessor:
    """Resizes, scales and normalises, with PIL.

    Args:
        height, width: in pixels, of what comes out.
        channels: of the pictures.
        trained: the image processor that the model was trained with, for its means and deviations; by default 0.5.
    """
    names = ("image_mean", "image_std")
    statistics = {name: getattr(trained, name) if trained else [0.5] * channels for name in names}
    return PictureProcessor(size={"height": height, "width": width}, **statistics)
