"""A non-autoregressive transformer for translation: all target tokens at once, after their number (Gu et al. 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from hf_reloss.metrics.base import IGNORED_LABEL


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of logits [B, T, V] and labels [B, T], a scalar; 0 where all labels are -100."""
    logits, labels = logits.flatten(0, 1), labels.flatten()
    losses = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return losses / (labels != IGNORED_LABEL).sum().clamp(min=1)


class NatConfig(PreTrainedConfig):
    """Sizes of a `NatForTranslation`.

    Args:
        vocab_size: of source and target, which are of one vocabulary.
        d_model, encoder_layers, decoder_layers, num_attention_heads, ffn_dim, dropout: of the transformer.
        max_position_embeddings: the longest source and target.
        max_length_difference: the target's length is predicted as the source's plus a number between this and its
            negative.
        length_weight: of the length's cross-entropy beside that of a token.
        tie_word_embeddings: whether the output layer's weights are those of the embeddings.
        pad_token_id, decoder_start_token_id: the second stands at each position of the decoder's input.
    """

    model_type = "nat"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["auxiliary_loss", "length_logits"]
    is_encoder_decoder: bool = True
    vocab_size: int = 8000
    d_model: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_attention_heads: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    max_position_embeddings: int = 256
    max_length_difference: int = 32
    length_weight: float = 0.1
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 0


@dataclass
class NatOutput(ModelOutput):
    """Outputs of a `NatForTranslation`.

    Attributes:
        loss: a scalar, the loss of tokens and that of the length, if labels were given.
        logits: [B, T, V].
        auxiliary_loss: a scalar, the length's part of the loss, which is there without labels too.
        length_logits: [B, 2 max_length_difference + 1].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    auxiliary_loss: torch.Tensor | None = None
    length_logits: torch.Tensor | None = None


class NatForTranslation(PreTrainedModel, GenerationMixin):
    """Encoder, decoder without a causal mask, and a classifier of the target's length.

    The decoder's input at each target position is the source embedding at the same share of the sentence (uniform
    copy), with a learned position. In training the target's length is that of the labels.

    Attributes:
        token_loss: the loss of logits [B, T, V] and labels [B, T]; another may be set.
    """

    config_class = NatConfig
    base_model_prefix = "nat"
    main_input_name = "input_ids"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"output.weight": "tokens.weight"}

    def __init__(self, config: NatConfig):
        super().__init__(config)
        width = config.d_model
        layer = {
            "d_model": width,
            "nhead": config.num_attention_heads,
            "dim_feedforward": config.ffn_dim,
            "dropout": config.dropout,
            "batch_first": True,
            "norm_first": True,
        }
        self.tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.target_positions = nn.Embedding(config.max_position_embeddings, width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**layer), config.encoder_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**layer), config.decoder_layers, nn.LayerNorm(width)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.length = nn.Linear(width, 2 * config.max_length_difference + 1)
        self.token_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = token_cross_entropy
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.d_model**-0.5)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Ids [B, T] that say how long each target is: the start token where the labels count, else -100.

        Not padding, which may be the start token, as it is of Marian models.
        """
        ids = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        return ids.masked_fill(labels == IGNORED_LABEL, IGNORED_LABEL)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> NatOutput:
        """Logits of all target tokens.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S]; by default what is not padding.
            labels: [B, T], -100 where there is no token.
            decoder_input_ids: [B, T], of which only the lengths are used; by default they are the labels'.

        Raises:
            ValueError: without labels and decoder_input_ids, or for more tokens than there are positions.
        """
        source_mask = self._source_mask(input_ids, attention_mask)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("NatForTranslation wants labels or decoder_input_ids, or call generate.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        memory, embedded = self._encode(input_ids, source_mask)
        length_logits = self._length_logits(memory, source_mask)
        target_mask = decoder_input_ids != IGNORED_LABEL
        logits = self._decode(memory, embedded, source_mask, target_mask)
        reach = self.config.max_length_difference
        difference = (target_mask.sum(1) - source_mask.sum(1)).clamp(-reach, reach)
        auxiliary_loss = self.config.length_weight * F.cross_entropy(length_logits, difference + reach)
        loss = None
        if labels is not None:
            loss = self.token_loss(logits, labels) + auxiliary_loss
        return NatOutput(loss, logits, auxiliary_loss, length_logits)

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_) -> torch.Tensor:
        """The most likely token at each position, of as many as are most likely: ids [B, T], padded at the end."""
        source_mask = self._source_mask(input_ids, attention_mask)
        memory, embedded = self._encode(input_ids, source_mask)
        lengths = self._length_logits(memory, source_mask).argmax(-1) - self.config.max_length_difference
        lengths = (lengths + source_mask.sum(1)).clamp(1, self.config.max_position_embeddings)
        target_mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        ids = self._decode(memory, embedded, source_mask, target_mask).argmax(-1)
        return ids.masked_fill(~target_mask, self.config.pad_token_id)

    def _source_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which tokens [B, S] of the source are there; where there is none, its padding is read."""
        mask = (input_ids != self.config.pad_token_id) if attention_mask is None else attention_mask.bool()
        return mask | ~mask.any(1, keepdim=True)

    def _check_length(self, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            raise ValueError(
                f"A sentence has {length} tokens, but this model has positions for {longest}: cut the sentences, or "
                "make a model with a larger max_position_embeddings."
            )

    def _encode(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_length(input_ids.shape[1])
        embedded = self.tokens(input_ids) * self.config.d_model**0.5
        positions = self.positions.weight[: input_ids.shape[1]]
        return self.encoder(self.dropout(embedded + positions), src_key_padding_mask=~mask), embedded

    def _length_logits(self, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total = (memory * mask[..., None]).sum(1)
        return self.length(total / mask.sum(1, keepdim=True).clamp(min=1))

    def _decode(
        self, memory: torch.Tensor, embedded: torch.Tensor, source_mask: torch.Tensor, target_mask: torch.Tensor
    ) -> torch.Tensor:
        self._check_length(target_mask.shape[1])
        sources, targets = source_mask.sum(1, keepdim=True), target_mask.sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(target_mask.shape[1], device=memory.device)
        copied = (place * sources // targets).clamp(max=source_mask.shape[1] - 1)
        inputs = embedded.gather(1, copied[..., None].expand(-1, -1, embedded.shape[-1]))
        inputs = self.dropout(inputs + self.target_positions.weight[: len(place)])
        # A target of no tokens attends to its padding: its outputs are not used, but must not be nan.
        padding = ~target_mask & target_mask.any(1, keepdim=True)
        hidden = self.decoder(inputs, memory, tgt_key_padding_mask=padding, memory_key_padding_mask=~source_mask)
        return self.output(hidden)


AutoConfig.register(NatConfig.model_type, NatConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(NatConfig, NatForTranslation, exist_ok=True)
