"""Embeddings of sentences or images: an encoder, its features pooled, and a linear projection."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class EmbedderConfig(PreTrainedConfig):
    """Configuration of an `Embedder`.

    Args:
        encoder_config: of one of transformers' encoders, or as a dict with its `model_type`; by default a BERT.
        embedding_size: D.
        classes: how many a head for cross-entropy tells apart; 0 for none.
    """

    model_type = "embedder"
    sub_configs: ClassVar = {"encoder_config": AutoConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    embedding_size: int = 128
    classes: int = 0

    def __post_init__(self, **kwargs: Any):
        if self.encoder_config is None:
            self.encoder_config = BertConfig()
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        super().__post_init__(**kwargs)


@dataclass
class EmbedderOutput(ModelOutput):
    """What an `Embedder` puts out.

    Attributes:
        loss: a scalar, where there are labels and a head.
        embeddings: [N, D].
    """

    loss: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class Embedder(PreTrainedModel):
    """From sentences or images to embeddings.

    Pooled are the mean over the tokens of a sentence, or what the encoder of images pools itself, if it does, and else
    the mean over its patches. With a head, its own loss is the cross-entropy of the classes trained on; other labels do
    not count in it.
    """

    config_class = EmbedderConfig

    def __init__(self, config: EmbedderConfig):
        super().__init__(config)
        encoder = config.encoder_config
        self.encoder = AutoModel.from_config(encoder)
        width = encoder.hidden_size if hasattr(encoder, "hidden_size") else encoder.hidden_sizes[-1]
        self.projection = nn.Linear(width, config.embedding_size)
        self.head = nn.Linear(config.embedding_size, config.classes) if config.classes else None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> EmbedderOutput:
        """Embeddings and, with labels and a head, the model's own loss.

        Args:
            input_ids, attention_mask, token_type_ids: [N, T] each, of sentences.
            pixel_values: [N, C, height, width], of images.
            labels: [N] int64.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"pixel_values": pixel_values}
        outputs = self.encoder(**{name: tensor for name, tensor in inputs.items() if tensor is not None})
        if attention_mask is not None:
            mask = attention_mask[..., None].to(outputs.last_hidden_state)
            pooled = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)
        elif pixel_values is not None and outputs.get("pooler_output") is not None:
            pooled = outputs.pooler_output.flatten(1)
        else:
            pooled = outputs.last_hidden_state.mean(1)
        embeddings = self.projection(pooled)
        if labels is None or self.head is None:
            return EmbedderOutput(embeddings=embeddings)
        known = labels < self.config.classes
        losses = F.cross_entropy(self.head(embeddings), labels.masked_fill(~known, -100), reduction="sum")
        return EmbedderOutput(loss=losses / known.sum().clamp(min=1), embeddings=embeddings)


AutoConfig.register(EmbedderConfig.model_type, EmbedderConfig, exist_ok=True)
