"""A run as it was when its loss was changed, on disk: what it can be set back to."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import output_folder

FOLDER = "_own_loss"
"""Where it is kept, in the trainer's folder."""

BEST, FIRST = "best", "first"
"""Within it: the best checkpoint of the run so far, and those of a run that another one follows."""


class KeptRun:
    """Keeps a checkpoint of a run, and the run's own checkpoints from being lost to another that goes on from it.

    Args:
        trainer: that runs.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._usual: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        return Path(self._usual.get("output_dir") or output_folder(self.trainer.args)) / FOLDER

    def checkpoint(self, step: int) -> Path:
        """Where the run is kept as it was after a step."""
        return self.folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def keep(self) -> None:
        """Lets the trainer write a checkpoint after this step: here, if it would write none itself."""
        args, control = self.trainer.args, self.trainer.control
        if not control.should_save:  # else it is copied from the user's own
            self._usual = {name: getattr(args, name) for name in ("output_dir", "push_to_hub", "save_only_model")}
            args.output_dir, args.push_to_hub, args.save_only_model = str(self.folder), False, False
            control.should_save = True

    def saved(self, step: int) -> bool:
        """The checkpoint has been written. Says whether all processes see it, which those without a disk in common do
        not."""
        trainer, kept = self.trainer, self.checkpoint(step)
        if self._usual:
            usual, self._usual = self._usual, {}
            for argument, value in usual.items():
                setattr(trainer.args, argument, value)
        elif trainer.args.should_save:
            shutil.copytree(output_folder(trainer.args) / kept.name, kept, dirs_exist_ok=True)
        best = trainer.state.best_model_checkpoint
        if trainer.args.should_save and best is not None and Path(best).is_dir():
            _copy(Path(best), self.folder / BEST / Path(best).name)
        trainer.accelerator.wait_for_everyone()
        return all(gather_object([kept.is_dir()]))

    def go_back(self) -> None:
        """Another run goes on from here: what was its best checkpoint by then is there again, if it was deleted."""
        for kept in (self.folder / BEST).glob("*"):
            place = output_folder(self.trainer.args) / kept.name
            if self.trainer.args.should_save and not place.exists():
                shutil.move(kept, place)
        self.trainer.accelerator.wait_for_everyone()

    def put_away(self, step: int) -> None:
        """Takes the checkpoints of a run out of the way of another, which goes on from a step of it."""
        if self.trainer.args.should_save:
            for found in self._checkpoints():
                after = int(found.name.rpartition("-")[-1]) > step
                (self.folder / FIRST).mkdir(parents=True, exist_ok=True)
                (shutil.move if after else _copy)(found, self.folder / FIRST / found.name)
        self.trainer.accelerator.wait_for_everyone()

    def bring_back(self) -> None:
        """Puts them back, in place of those of the other run. It waits for no process: one of them may have failed."""
        if self.trainer.args.should_save:
            for found in self._checkpoints():
                shutil.rmtree(found)
            for found in (self.folder / FIRST).glob("*"):
                shutil.move(found, output_folder(self.trainer.args) / found.name)

    def remove(self) -> None:
        """Takes away what was kept."""
        if self.trainer.args.should_save:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        found = output_folder(self.trainer.args).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        return [path for path in found if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) and path.is_dir()]


def _copy(found: Path, place: Path) -> None:
    """Copies a checkpoint, which nobody writes to any more: by links to its files, where the disk has them."""
    shutil.copytree(found, place, copy_function=_link, dirs_exist_ok=True)


def _link(found: str, place: str) -> None:
    try:
        os.link(found, place)
    except OSError:  # also of one that is there already
        shutil.copy2(found, place)
