"""What minimum risk training compares: candidates for each example, drawn from the model, and how likely they are."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutput

from ...metrics.base import IGNORED_LABEL
from ...predictions.models import unwrapped, writes_text
from ..batch import Batch


class Candidates(NamedTuple):
    """Candidates for the N examples of a batch: those M of N·K that differ from the others of their example.

    Attributes:
        ids: [M, T] int64 tokens, -100 after the end.
        examples: [M] int64, of which example each is.
        distinct: [N, K] bool, which of the K of each example they are; M are True.
        log_probabilities: [M] float32, log p(y|x), with gradients; -inf for what the model cannot put out.
        references: [N, L] int64 tokens, -100 after the end.
        outputs: of the model.
    """

    ids: torch.Tensor
    examples: torch.Tensor
    distinct: torch.Tensor
    log_probabilities: torch.Tensor
    references: torch.Tensor
    outputs: Any


class CandidateSource(ABC):
    """Where the candidates for minimum risk training come from.

    Args:
        trainer: that trains on them.

    Raises:
        ValueError: for a model from which none can be drawn.
    """

    calls_model: ClassVar[bool]
    """Whether `candidates` calls the model itself; if not, it is given the outputs of the batch."""
    defaults: ClassVar[Mapping[str, Any]]
    """What `risk_candidates`, `risk_alpha` and `risk_reference` are by default, by what follows `risk_`."""
    decoding: ClassVar[Mapping[str, Any]] = {}
    """Options of the tokenizer to decode tokens with."""
    paper: ClassVar[str]
    """The address of what a model's page links."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    @abstractmethod
    def candidates(self, batch: Batch, outputs: Any, number: int, with_reference: bool, seed: int) -> Candidates:
        """Candidates for a micro-batch.

        Args:
            batch: the micro-batch.
            outputs: of the model; None where it is to be called.
            number: how many are drawn for each example.
            with_reference: whether the reference is one more, the first.
            seed: of the random numbers.
        """


def distinct_of(candidates: torch.Tensor) -> torch.Tensor:
    """Which of candidates [N, K, T] differ from those before them: [N, K] bool."""
    return ~(candidates[:, :, None] == candidates[:, None]).all(-1).tril(-1).any(-1)


def with_references(references: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """References [N, L], as the first candidates, before those drawn, [N, K, T]: [N, 1 + K, max(L, T)]."""
    length = max(drawn.shape[-1], references.shape[-1])
    return torch.cat([_longer(references[:, None], length), _longer(drawn, length)], dim=1)


def _longer(ids: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(ids, (0, length - ids.shape[-1]), value=IGNORED_LABEL)


@torch.no_grad()
def drawn_texts(
    model: nn.Module, prompt: Mapping[str, Any], number: int, seed: int, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws texts from a model, in evaluation mode, by default from its whole distribution.

    Args:
        model: that writes text. Its mode stays what it is, as does the random state.
        prompt: what it reads of N examples; of a causal language model padded at the left.
        number: K, how many texts are drawn for each example.
        seed: of the random numbers.
        options: of `generate`.

    Returns:
        The tokens [N, S] that the texts go on from, of an encoder-decoder one each; and those drawn, [N, K, T] int64,
        -100 after the end.
    """
    settings = {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0} | options
    writer: Any = model
    bare, training = unwrapped(model), model.training
    generate = writer.generate
    if any(kind.__name__ == "WhisperGenerationMixin" for kind in type(bare).__mro__):
        # Its own leaves out what texts start from and their end, and suppresses tokens that labels have.
        generate = functools.partial(GenerationMixin.generate, bare)
        settings |= {"suppress_tokens": None, "begin_suppress_tokens": None}
    model.eval()
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        ids = generate(**prompt, **settings, num_return_sequences=number, return_dict_in_generate=False)
    model.train(training)
    length = 1 if bare.config.is_encoder_decoder else prompt["input_ids"].shape[-1]
    ends, written = bare.generation_config.eos_token_id, ids[:, length:]
    if ends is not None:
        last = torch.isin(written, torch.tensor(ends, device=ids.device))
        written = written.masked_fill(last.cumsum(-1) > last.long(), IGNORED_LABEL)
    return ids[::number, :length], written.unflatten(0, (-1, number))


class Written(CandidateSource):
    """What an encoder-decoder writes token by token.

    Candidates are drawn in evaluation mode, from the model's whole distribution, as long as `generation_max_length` or
    the `generation_config` allows. The outputs are the model's for the candidates, [M, T, V] logits.
    """

    calls_model = True
    defaults: ClassVar[Mapping[str, Any]] = {"candidates": 4, "alpha": 5e-3, "reference": True}
    paper = "https://arxiv.org/abs/1512.02433"

    def __init__(self, trainer: Any):
        super().__init__(trainer)
        model = unwrapped(trainer.model)
        draws = writes_text(model) and "generation_config" in inspect.signature(model.generate).parameters
        if not (draws and model.config.is_encoder_decoder):
            raise ValueError(
                "surrogate='minimum_risk' draws texts from a model of CTC (a class ...ForCTC), or from an encoder-"
                f"decoder that writes token by token, but this is {type(model).__name__}: take such a model, or "
                "another surrogate."
            )
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "surrogate='minimum_risk' draws texts from a model that is whole in each process, but FSDP or "
                "DeepSpeed's ZeRO-3 divides it: use data parallel processes, or another surrogate."
            )

    def candidates(self, batch: Batch, outputs: Any, number: int, with_reference: bool, seed: int) -> Candidates:
        model, labels, skipped = batch.model, batch.labels, self.trainer.label_names
        given = batch.inputs.items()
        prompt = {name: x for name, x in given if name not in skipped and not name.startswith("decoder_")}
        writer = self.trainer.accelerator.unwrap_model(model)
        longest = getattr(self.trainer.args, "generation_max_length", None)
        options = {} if longest is None else {"max_length": longest}
        starts, drawn = drawn_texts(writer, prompt, number, seed, **options)
        candidates = with_references(labels, drawn) if with_reference else drawn
        distinct = distinct_of(candidates)
        examples, ids = distinct.nonzero()[:, 0], candidates[distinct]
        log_probabilities, outputs = self._log_probabilities(model, prompt, starts[examples, 0], ids, examples)
        return Candidates(ids, examples, distinct, log_probabilities, labels, outputs)

    def _log_probabilities(
        self,
        model: nn.Module,
        prompt: Mapping[str, Any],
        starts: torch.Tensor,
        targets: torch.Tensor,
        examples: torch.Tensor,
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """log p(y|x) [M] float32 of targets [M, T], each of one of the N examples [M], which are encoded once."""
        encoder = unwrapped(model).get_encoder()
        known = inspect.signature(encoder.forward).parameters
        with self.trainer.accelerator.autocast():
            encoded = encoder(**{name: x for name, x in prompt.items() if name in known}, return_dict=True)
        given = {name: prompt[name][examples] for name in ("attention_mask",) if name in prompt}
        read = torch.cat([starts[:, None], targets[:, :-1].clamp(min=0)], dim=1)  # behind the end nothing counts
        outputs = model(
            **given,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[0][examples]),
            decoder_input_ids=read,
            use_cache=False,
        )
        each = F.cross_entropy(
            outputs["logits"].float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED_LABEL
        )
        return -each.view(targets.shape).sum(-1), outputs
