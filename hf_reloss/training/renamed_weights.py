"""Weights of a checkpoint under other names than the model's, which Trainer passes over.

From transformers 5 on, `save_pretrained` writes the weights of some models, such as SegFormer, under the names that
their published checkpoints have, and `from_pretrained` reads them; Trainer, which loads the file itself when it resumes
or takes the best checkpoint, finds none of these names in the model, and leaves it as it is.
"""

from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)


def restore_renamed(model: nn.Module, checkpoint: Path) -> bool:
    """Loads the weights of a checkpoint into a model where its file has them under other names; else does nothing.

    Args:
        model: itself, without what distributes it.
        checkpoint: a folder of a Trainer.

    Returns:
        Whether they were loaded.
    """
    file = checkpoint / SAFE_WEIGHTS_NAME
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return False
    with safe_open(file, framework="pt") as weights:
        stored = set(weights.keys())
    own = model.state_dict()
    if stored <= own.keys():
        return False
    try:
        saved = type(model).from_pretrained(checkpoint, config=model.config, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except Exception as error:  # such as of a model that is made with more than its configuration
        logger.warning(
            f"{file} has weights under other names than the model's, such as {min(stored - own.keys())}, which "
            f"from_pretrained cannot read ({error!r}): those weights of the model stay as they were."
        )
        return False
    return True
