"""Candidates of a model of connectionist temporal classification (CTC), which puts out a token or a blank a frame."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ...metrics.base import IGNORED_LABEL
from ...predictions.models import unwrapped
from ...surrogates.base import output_tensor
from ..arguments import option
from ..batch import Batch
from .candidates import Candidates, CandidateSource, Wanted, different, drawn_classes, packed, with_references


class Aligned(CandidateSource):
    """What a model of CTC puts out along its frames.

    A path is drawn frame by frame from the model's own posteriors, in training mode; repeats are taken together and
    blanks left out. log p(y|x) is that of all paths for y, by `torch.nn.functional.ctc_loss`. Blank is the model's
    `config.pad_token_id`, as in transformers.

    Raises:
        ValueError: for a model without such a token, or one that adds the CTC loss up beside the risk.
    """

    calls_model = False
    decoding: ClassVar[Mapping[str, Any]] = {"group_tokens": False}

    def __init__(self, trainer: Any, word: str):
        super().__init__(trainer, word)
        model = unwrapped(trainer.model)
        config = getattr(model, "config", None)
        blank = getattr(config, "pad_token_id", None)
        if blank is None:
            raise ValueError(
                f"surrogate={word!r} takes a model's config.pad_token_id for the blank of CTC, but "
                f"{type(model).__name__} has none: set it."
            )
        self.blank: int = blank
        given = option(trainer.args, "model_loss_share")
        share = trainer.strategy.default_own_share if given is None else given
        if getattr(config, "ctc_loss_reduction", "mean") == "sum" and share > 0:
            raise ValueError(
                "model.config.ctc_loss_reduction='sum' adds the CTC loss of all tokens of a batch up, beside a risk of "
                f"about 0 to 1 (model_loss_share={share}): set it to 'mean', or pass model_loss_share=0."
            )

    def candidates(self, batch: Batch, outputs: Any, wanted: Wanted) -> Candidates:
        logits = output_tensor(outputs, "logits").float()
        log_p, tempered = logits.log_softmax(-1), (logits / wanted.temperature).log_softmax(-1)
        lengths = frame_lengths(batch.model, batch.inputs, log_p)
        labels = batch.labels
        references = packed(labels, (labels != IGNORED_LABEL) & (labels != self.blank))
        with torch.no_grad():
            paths = drawn_paths(tempered, wanted.random.next(*log_p.shape[:2], wanted.number))
            drawn = collapsed(paths, lengths[:, None], self.blank)
            found = different(with_references(references, drawn) if wanted.with_reference else drawn)
        read = tempered if wanted.is_tempered else log_p
        log_probabilities = ctc_log_probabilities(read, lengths, found.ids, found.examples, self.blank)
        return Candidates(*found, log_probabilities, references, outputs)


def drawn_paths(log_probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Paths drawn frame by frame: [N, K, T] int64.

    Args:
        log_probabilities: [N, T, V] float32, of the tokens of each frame.
        numbers: [N, T, K] float32, random ones from 0 to below 1.
    """
    return drawn_classes(log_probabilities, numbers).transpose(1, 2)


def collapsed(paths: torch.Tensor, lengths: torch.Tensor, blank: int) -> torch.Tensor:
    """What paths stand for: repeats taken together, then blanks left out.

    Args:
        paths: [..., T] int64.
        lengths: [...] int64, to be broadcast: how many frames of each count.
        blank: its token.

    Returns:
        [..., L] int64, -100 after the end, with the longest one's L, or 1 where all are empty.

    Example:
        >>> collapsed(torch.tensor([[3, 3, 0, 3, 5, 5]]), torch.tensor([6]), blank=0)
        tensor([[3, 3, 5]])
    """
    places = torch.arange(paths.shape[-1], device=paths.device)
    changes = F.pad(paths[..., 1:] != paths[..., :-1], (1, 0), value=True)
    return packed(paths, changes & (paths != blank) & (places < lengths[..., None]))


def frame_lengths(model: nn.Module, inputs: Mapping[str, Any], frames: torch.Tensor) -> torch.Tensor:
    """How many frames of each example count, [N] int64, as the model itself computes it from its attention mask.

    Args:
        model: which may be wrapped.
        inputs: what it was given.
        frames: [N, T, ...], what it put out.

    Raises:
        ValueError: for a mask that it does not say how to read.
    """
    mask, most = inputs.get("attention_mask"), frames.shape[1]
    if mask is None:
        return torch.full((len(frames),), most, device=frames.device)
    bare = unwrapped(model)
    if hasattr(bare, "_get_feat_extract_output_lengths"):
        lengths = bare._get_feat_extract_output_lengths(mask.sum(-1))
    elif hasattr(bare, "_get_output_attention_mask"):
        lengths = bare._get_output_attention_mask(mask, target_length=most).sum(-1)
    elif mask.shape[-1] == most:
        lengths = mask.sum(-1)
    else:
        raise ValueError(
            f"{type(bare).__name__} was given an attention mask {list(mask.shape)} and put out {most} frames: to know "
            "how many of these count, give it a method _get_feat_extract_output_lengths(input_lengths)."
        )
    return lengths.long().clamp(0, most)


def ctc_log_probabilities(
    log_probabilities: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor, examples: torch.Tensor, blank: int
) -> torch.Tensor:
    """log p(y|x) of token sequences, [M] float32; -inf, without a gradient, for one that the frames are too few for.

    Args:
        log_probabilities: [N, T, V] float32, of the tokens of each frame.
        lengths: [N] int64, how many frames of each example count.
        ids: [M, L] int64, -100 after the end.
        examples: [M] int64, of which example each is.
        blank: its token.
    """
    kept, frames = ids != IGNORED_LABEL, lengths[examples]
    targets = kept.sum(-1)
    repeats = ((ids[:, 1:] == ids[:, :-1]) & kept[:, 1:]).sum(-1)
    possible = targets + repeats <= frames
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probabilities[examples].transpose(0, 1),
            ids.clamp(min=0),
            frames,
            targets,
            blank=blank,
            reduction="none",
            zero_infinity=True,
        )
    return (-losses).masked_fill(~possible, -torch.inf)
