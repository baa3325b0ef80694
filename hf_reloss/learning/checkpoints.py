"""Checkpoints that a run can go on from."""

import json
from pathlib import Path
from zipfile import is_zipfile

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_whole_checkpoint(folder: str | Path) -> str:
    """The last checkpoint in a folder that was written to its end.

    A process that is killed while it saves, or whose disk is full, leaves one behind that was not: the state of the
    trainer, which comes last, is missing or broken off, or the random state of a process is.

    Raises:
        ValueError: if there is none.
    """
    checkpoints = [
        path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()
    ]
    newest_first = sorted(checkpoints, key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for path in newest_first:
        if _has_state(path):
            return str(path)
    found = ", ".join(path.name for path in newest_first) or "no checkpoint"
    raise ValueError(
        f"There is nothing to resume from: {folder} holds {found}, and none that was written to its end. Start anew, "
        "without resume_from_checkpoint."
    )


def _has_state(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(is_zipfile(file) for file in checkpoint.glob("rng_state*.pth"))  # as torch writes them
