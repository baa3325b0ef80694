"""What a decision rule is: scores of classes, of which the highest is decided."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

FILE = "decision.json"
"""Where a rule is kept beside a model."""


class DecisionRule(ABC):
    """A rule from logits [..., C] to decisions [...]: the class whose score is highest; a tie goes to the first.

    A subclass is found by its `word` in a saved rule, in this package or elsewhere.
    """

    word: ClassVar[str]
    """The word for it in a saved rule."""
    defined: ClassVar[dict[str, type["DecisionRule"]]] = {}
    """All rules that there are by now, by their words."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "word" in vars(cls):
            DecisionRule.defined[cls.word] = cls

    @abstractmethod
    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores [..., C] of logits [..., C], of their dtype: the higher, the better a class."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Of how many classes it decides."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What it is made with, as JSON has it."""

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Class indices [...] int64 of logits [..., C]."""
        return self.scores(logits).argmax(-1)

    def offsets(self) -> torch.Tensor | None:
        """Numbers [C] that, added to the logits, make argmax decide alike; None where there are none."""
        return None

    def drawn(self) -> dict[str, torch.Tensor]:
        """What there is of it to draw, by what it is called: numbers of classes [C], or what deciding for one class
        costs where another is right, [C, C] by label and decision."""
        offsets = self.offsets()
        return {} if offsets is None else {"added to the logit": offsets}

    def attach(self, model: nn.Module) -> RemovableHandle:
        """Makes a model put out scores for `logits` in evaluation, so that a `pipeline` decides by the rule.

        Args:
            model: a module that puts out a mapping with `logits` [..., C], such as `pipeline(...).model`.

        Returns:
            A handle; its `remove()` takes the rule off again.
        """

        def replace(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            if not module.training:
                outputs["logits"] = self.scores(outputs["logits"])
            return outputs

        return model.register_forward_hook(replace)

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder, beside a model."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = json.dumps({"rule": self.word} | self.to_dict(), indent=2)
        (Path(folder) / FILE).write_text(content + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> "DecisionRule":
        """The rule in a folder.

        Raises:
            OSError: if there is none.
            ValueError: for one that is not known here, or damaged.
        """
        content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        word = content.pop("rule", None)
        if word not in DecisionRule.defined:
            known = ", ".join(sorted(DecisionRule.defined))
            raise ValueError(f"{folder} has the decision rule {word!r}, which is not known here: there are {known}.")
        try:
            return DecisionRule.defined[word](**content)
        except TypeError as error:
            raise ValueError(f"The decision rule in {folder} is damaged: {error}.") from error
