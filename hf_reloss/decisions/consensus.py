"""Deciding what a model writes: of the texts that beam search finds, the one that agrees best with all of them.

Minimum Bayes risk decoding: Kumar and Byrne 2004, Minimum Bayes-Risk Decoding for Statistical Machine Translation; of
a beam's texts with probabilities that are sharpened or flattened, as there.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ..metrics import Metric, load_metric
from ..metrics.loading import metric_of
from ..metrics.sentences import Risk
from ..predictions.models import unwrapped, writes_by_itself
from .base import SavedRule

BEAMS = 8
"""Of which texts are found, by default."""

NO_TEXT = -1e8
"""The score of a beam that found no text is below this."""


class Consensus(SavedRule):
    """Writes the text with the highest expected score: of K texts that beam search finds, each is scored against all as
    if they were the references, and weighs as much as it is likely: minimum Bayes risk decoding (Kumar and Byrne 2004).

    The likeliest text is often too short, or one of a kind. Its cost is that of beam search, and K² scores of a metric
    for each example.

    Args:
        metric: what `load_metric` takes, of texts; it scores them one by one, see `metric_of_each`.
        num_beams: K, how many texts are found.
        sharpness: a weight is exp(sharpness · score) where the score is that of beam search, log p per token with a
            `length_penalty` of 1; 0 weighs all alike.
        metric_options: of the metric, by its name.

    Raises:
        ValueError: for a metric that cannot score texts, or fewer than 2 beams.

    Example:
        >>> texts = [["a man walks", "a dog runs on grass", "a dog runs on the grass"]]
        >>> Consensus("chrf").choose(texts, torch.tensor([[-0.9, -1.0, -1.0]]))
        tensor([2])
    """

    word = "consensus"
    usual = "the likeliest text"

    def __init__(
        self,
        metric: Metric | Any,
        num_beams: int = BEAMS,
        sharpness: float = 3.0,
        metric_options: dict[str, Any] | None = None,
    ):
        if num_beams < 2:
            raise ValueError(f"A consensus is one of 2 beams or more, but num_beams is {num_beams}.")
        self.metric, self.num_beams, self.sharpness = load_metric(metric, **metric_options or {}), num_beams, sharpness
        self._risk = Risk(self.metric, "A consensus")

    def to_dict(self) -> dict[str, Any]:
        """What it is made with, as JSON has it.

        Raises:
            ValueError: for a metric that is none known by name.
        """
        if metric_of(self.metric.signature) is None:
            raise ValueError(
                f"A consensus is saved with the name of its metric, but {self.metric.name!r} is a function or an "
                "object of your own: take one that load_metric knows by name, such as 'sacrebleu'."
            )
        return {
            "metric": self.metric.name,
            "num_beams": self.num_beams,
            "sharpness": self.sharpness,
            "metric_options": self.metric.options,
        }

    def risks(self, texts: Sequence[Sequence[str]]) -> torch.Tensor:
        """Risks [n, K, K] float32 of texts `[n][K]` (rows) if others of their example (columns) were the references."""
        pairs = [(text, other) for each in texts for text in each for other in each]
        if not pairs:
            return torch.zeros(0, self.num_beams, self.num_beams)
        return self._risk(*map(list, zip(*pairs, strict=True))).view(len(texts), len(texts[0]), -1)

    def choose(self, texts: Sequence[Sequence[str]], scores: torch.Tensor) -> torch.Tensor:
        """Which text is written for each example.

        Args:
            texts: `[n][K]`.
            scores: [n, K], their scores by beam search.

        Returns:
            [n] int64; of texts with an equal expected score the first.
        """
        return chosen(self.risks(texts), scores, self.sharpness)

    def attach(self, model: nn.Module, tokenizer: Any) -> ExitStack:
        """Makes `model.generate` write the consensus, so that a `pipeline` and a trainer do.

        Where it is called to sample, for several texts of each example, or for a dictionary, it does what it did.

        Args:
            model: that writes text.
            tokenizer: which decodes it.

        Returns:
            A context manager; leaving it, or its `close()`, takes the rule off again.

        Raises:
            ValueError: for Whisper, which gives one text of a beam.
        """
        check_writer(model)
        writer: Any = unwrapped(model)
        before = writer.generate

        def generate(*args: Any, **kwargs: Any) -> torch.Tensor:
            config = kwargs.get("generation_config") or writer.generation_config
            own = {name: kwargs.get(name, getattr(config, name, None)) for name in _ITS_OWN}
            if any(own.values()) or (kwargs.get("num_return_sequences", config.num_return_sequences) or 1) > 1:
                return before(*args, **kwargs)
            ids, texts, scores = beams(before, tokenizer, self.num_beams, *args, **kwargs)
            return ids[torch.arange(len(ids)), self.choose(texts, scores)]

        own, attached = {name: vars(writer)[name] for name in ("generate",) if name in vars(writer)}, ExitStack()
        writer.generate = generate
        attached.callback(vars(writer).update, own)
        attached.callback(vars(writer).pop, "generate", None)  # which comes first
        return attached


def check_writer(model: nn.Module) -> None:
    """Raises ValueError for a model that does not give the texts of its beam."""
    if writes_by_itself(model):
        raise ValueError(
            f"Of a beam's texts {type(unwrapped(model)).__name__} gives one, several times over, so there is none to "
            "choose: leave the decision at what it writes."
        )


_ITS_OWN = ("do_sample", "return_dict_in_generate")
"""Options of `generate` with which it does something else."""


def chosen(risks: torch.Tensor, scores: torch.Tensor, sharpness: float) -> torch.Tensor:
    """The texts [n] int64 of the lowest expected risk.

    Args:
        risks: [n, K, K], as `Consensus.risks` has them.
        scores: [n, K], by beam search.
        sharpness: as of `Consensus`.
    """
    scores = scores.double().cpu()
    found = scores > NO_TEXT
    weights = (sharpness * scores).masked_fill(~found, -torch.inf).softmax(-1)
    expected = (risks.double() * weights[:, None]).sum(-1)
    return expected.masked_fill(~found, torch.inf).argmin(-1)


class _Forgetting(StoppingCriteria):
    """Stops nothing: lets go of the scores of the vocabulary at each step, of which only the sums are wanted."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for each in scores[-1:]:
            each.resize_(len(each), 0)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def beams(
    generate: Any, tokenizer: Any, number: int, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, list[list[str]], torch.Tensor]:
    """What beam search finds for n examples.

    Args:
        generate: the method of a model.
        tokenizer: decodes what it writes.
        number: K, beams and texts.
        args, kwargs: of `generate`.

    Returns:
        Token ids [n, K, T] int64, texts [n][K] and their scores [n, K] float32.
    """
    criteria = StoppingCriteriaList([*kwargs.pop("stopping_criteria", []), _Forgetting()])
    found = generate(
        *args,
        **kwargs
        | {"num_beams": number, "num_return_sequences": number, "do_sample": False, "stopping_criteria": criteria}
        | {"return_dict_in_generate": True, "output_scores": True},
    )
    written = found.sequences[:, -found.beam_indices.shape[1] :]  # behind the prompt, or what a decoder starts from
    texts, scores = tokenizer.batch_decode(written, skip_special_tokens=True), found.sequences_scores.view(-1, number)
    in_rows = [texts[first : first + number] for first in range(0, len(texts), number)]
    return found.sequences.view(len(scores), number, -1), in_rows, scores
