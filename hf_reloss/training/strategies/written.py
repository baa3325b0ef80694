"""Candidates of a model that writes token by token."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, LogitsProcessor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutput

from ...metrics.base import IGNORED_LABEL
from ...predictions.models import unwrapped, writes_by_itself, writes_text
from ..batch import Batch
from .candidates import (
    Candidates,
    CandidateSource,
    Different,
    RandomNumbers,
    Wanted,
    different,
    drawn_classes,
    packed,
    with_references,
)


class _FallsOn(LogitsProcessor):
    """Leaves the one token that a random number falls on."""

    def __init__(self, random: RandomNumbers, number: int, temperature: float):
        self.random, self.number, self.temperature = random, number, temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        numbers = self.random.next(len(scores) // self.number, self.number).flatten()[:, None]
        chosen = drawn_classes((scores.float() / self.temperature).log_softmax(-1), numbers)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


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
    if writes_by_itself(bare):  # which also suppresses tokens that labels have
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


def log_probabilities_of(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p [M] float32 of texts.

    Args:
        logits: [M, T, V] of the tokens at each place.
        targets: [M, T] int64, -100 where there is none.
        temperature: that the logits are divided by.
    """
    each = F.cross_entropy(
        logits.float().flatten(0, 1) / temperature, targets.flatten(), reduction="none", ignore_index=IGNORED_LABEL
    )
    return -each.view(targets.shape).sum(-1)


class Written(CandidateSource):
    """What an encoder-decoder or a causal language model writes token by token.

    Candidates are drawn in evaluation mode, from the model's whole distribution, as long as `generation_max_length` or
    the `generation_config` allows. Of a causal model the prompt is what stands before the first label that counts, and
    the reference is the labels from there to the next gap. The outputs are the model's for the candidates: logits
    [M, T, V].

    Raises:
        ValueError: for a model that writes no text, or that is divided over processes; for a causal one of which nobody
            says how much it may write.
    """

    calls_model = True

    def __init__(self, trainer: Any, word: str):
        super().__init__(trainer, word)
        model = unwrapped(trainer.model)
        if not (writes_text(model) and "generation_config" in inspect.signature(model.generate).parameters):
            raise ValueError(
                f"surrogate={word!r} draws texts from a model of CTC (a class ...ForCTC), or from one that writes "
                f"token by token, but this is {type(model).__name__}: take such a model, or another surrogate."
            )
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                f"surrogate={word!r} draws texts from a model that is whole in each process, but FSDP or DeepSpeed's "
                "ZeRO-3 divides it: use data parallel processes, or another surrogate."
            )
        self.has_encoder: bool = model.config.is_encoder_decoder
        longest = getattr(trainer.args, "generation_max_length", None)
        self.options = {} if longest is None else {"max_length": longest}
        if not (self.has_encoder or longest or model.generation_config.max_new_tokens):
            raise ValueError(
                f"surrogate={word!r} lets {type(model).__name__} go on from its prompts, but nobody says for how long: "
                "set model.generation_config.max_new_tokens, to 64, say."
            )

    def candidates(self, batch: Batch, outputs: Any, wanted: Wanted) -> Candidates:
        labels, skipped = batch.labels, self.trainer.label_names
        given = batch.inputs.items()
        prompt = {name: x for name, x in given if name not in skipped and not name.startswith("decoder_")}
        if not self.has_encoder:
            prompt, labels = _prompt_and_answer(prompt, labels)
        writer = self.trainer.accelerator.unwrap_model(batch.model)
        falls_on = _FallsOn(wanted.random, wanted.number, wanted.temperature)
        starts, drawn = drawn_texts(
            writer, prompt, wanted.number, wanted.random.seed, logits_processor=[falls_on], **self.options
        )
        found = different(with_references(labels, drawn) if wanted.with_reference else drawn)
        called = self._after_source if self.has_encoder else self._after_prompt
        outputs, logits = called(batch.model, prompt, starts[found.examples], found)
        temperature = wanted.temperature if wanted.is_tempered else 1.0
        return Candidates(*found, log_probabilities_of(logits, found.ids, temperature), labels, outputs)

    def _after_source(
        self, model: nn.Module, prompt: Mapping[str, Any], starts: torch.Tensor, found: Different
    ) -> tuple[Mapping[str, Any], torch.Tensor]:
        """Of an encoder-decoder: what it puts out for candidates, and logits [M, T, V]. Each source is encoded once."""
        encoder = unwrapped(model).get_encoder()
        known = inspect.signature(encoder.forward).parameters
        with self.trainer.accelerator.autocast():
            encoded = encoder(**{name: x for name, x in prompt.items() if name in known}, return_dict=True)
        given = {name: prompt[name][found.examples] for name in ("attention_mask",) if name in prompt}
        outputs = model(
            **given,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[0][found.examples]),
            decoder_input_ids=torch.cat([starts, _read(found.ids)[:, :-1]], dim=1),
            use_cache=False,
        )
        return outputs, outputs["logits"]

    def _after_prompt(
        self, model: nn.Module, prompt: Mapping[str, Any], starts: torch.Tensor, found: Different
    ) -> tuple[Mapping[str, Any], torch.Tensor]:
        """Of a causal model likewise, after its prompts."""
        mask = prompt["attention_mask"][found.examples].bool()
        both = torch.cat([starts, _read(found.ids)], dim=1)
        rows = packed(both, torch.cat([mask, torch.ones_like(found.ids).bool()], dim=1))  # padded at the right
        outputs = model(input_ids=_read(rows), attention_mask=(rows != IGNORED_LABEL).long(), use_cache=False)
        places = mask.sum(-1, keepdim=True) - 1 + torch.arange(found.ids.shape[1], device=mask.device)
        logits = outputs["logits"][:, -rows.shape[1] :]  # an adapter may put tokens before
        return outputs, logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))


def _read(ids: torch.Tensor) -> torch.Tensor:
    """Tokens [M, T] as a model reads them: behind the end nothing counts."""
    return ids.clamp(min=0)


def _prompt_and_answer(inputs: Mapping[str, Any], labels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of a causal model's batch: prompts [N, P], padded at the left, and answers [N, L] int64, -100 after the end.

    Args:
        inputs: `input_ids` [N, S] and, where there is padding, `attention_mask`.
        labels: [N, ..., S] int64, of the token behind each place, as `batch_labels` has them.
    """
    ids = inputs["input_ids"]
    mask, labels = inputs.get("attention_mask", torch.ones_like(ids)).bool(), labels[:, -ids.shape[1] :]
    counts, place = labels != IGNORED_LABEL, torch.arange(ids.shape[1], device=ids.device)
    first = counts.long().argmax(-1, keepdim=True)
    gaps = (~counts & (place > first)).cumsum(-1)
    prompts = packed(ids, mask & (place <= first))
    width = prompts.shape[1]
    moved = torch.arange(width, device=ids.device) - width + (prompts != IGNORED_LABEL).sum(-1, keepdim=True)
    prompts = prompts.gather(1, moved.clamp(min=0))
    answers = packed(labels, counts & (gaps == 0))
    return {"input_ids": _read(prompts), "attention_mask": (moved >= 0).long()}, answers
