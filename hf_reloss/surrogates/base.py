"""The base of all surrogates: a `PreTrainedModel` from a model's outputs and labels to a loss."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from ..metrics.base import IGNORED_LABEL
from .config import SurrogateConfig


class Evidence(NamedTuple):
    """The part of a model's outputs and labels that a surrogate looks at.

    Attributes:
        outputs: [..., N, D] float32. The gradient penalty of the objective is taken here.
        labels: [..., N] int64, within range also where the prediction does not count.
        counts: [..., N] bool, False where the label was -100.
    """

    outputs: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor


class SurrogateNetwork(nn.Module):
    """The network from evidence to loss, one architecture of a kind of evidence.

    It defines `losses`, where each prediction has a loss of its own, or else `forward`.
    """

    architecture: ClassVar[str]
    gradient_penalty: float = 10.0
    """The weight λ of the gradient penalty with which it is learned by default."""

    def losses(self, evidence: Evidence) -> torch.Tensor:
        """The loss [..., N] of each prediction."""
        raise ValueError(
            f"The loss of the architecture {self.architecture!r} is that of a group: its predictions have none of "
            "their own, as reduction='none' asks for."
        )

    def forward(self, evidence: Evidence) -> torch.Tensor:
        """The loss [...] of each group: the mean over its predictions that count, 0 if there is none."""
        losses = self.losses(evidence).masked_fill(~evidence.counts, 0.0)
        return losses.sum(-1) / evidence.counts.sum(-1).clamp(min=1)

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The norms of its gradients, and those that the penalty holds them to.

        Returns:
            The norm [..., N] of the gradient of N times the group's loss with respect to each prediction's outputs
            (that of its own loss, where it has one), which can be differentiated by the weights; and the norms that
            are wanted, [..., N] or one for all.
        """
        return self._norms(evidence, {}), 1.0

    def _norms(self, evidence: Evidence, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Norms of the gradients, with some of its parameters replaced."""
        outputs = evidence.outputs.detach().requires_grad_()
        losses = functional_call(self, parameters, (evidence._replace(outputs=outputs),))
        weighted = (losses * evidence.counts.sum(-1)).sum()
        return torch.autograd.grad(weighted, outputs, create_graph=True)[0].norm(dim=-1)

    def canonical(self, evidence: Evidence) -> Evidence:
        """The evidence in the form in which it is learned: freed of what its metrics do not see, if at all.

        Used as a loss, it reads the evidence as it is.
        """
        return evidence

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """What was learned of one prediction, to draw: [n] of points [n]."""
        raise NotImplementedError


class Surrogate(PreTrainedModel):
    """A learned loss: lower when the metric is better.

    A subclass reads one kind of evidence: it defines `evidence`, `original_losses`, the `network` that takes the
    evidence to a loss and, as `task`, the name of its module. In any training loop, `surrogate(outputs, labels)` is the
    loss. It computes in float32, whatever the precision around it.
    """

    config_class = SurrogateConfig
    base_model_prefix = "surrogate"
    main_input_name = "outputs"
    supports_gradient_checkpointing = False
    task: ClassVar[str]
    network: SurrogateNetwork
    original_loss: ClassVar[str]
    """Name of the loss that `original_losses` gives."""

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        """Takes the evidence from a model's outputs (a `ModelOutput`, a dict, a tuple or a tensor) and its labels.

        Raises:
            ValueError: for outputs of another task, labels out of range, values that are not finite.
        """
        raise NotImplementedError

    def original_losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss [..., N] that the task is usually trained on, to compare with; 0 where the label is -100."""
        raise NotImplementedError

    def forward(self, outputs: Any, labels: torch.Tensor | None = None, *, reduction: str = "mean") -> torch.Tensor:
        """The loss.

        Args:
            outputs: what the model put out, or `Evidence`.
            labels: [..., N] int64; -100 does not count. None with `Evidence`.
            reduction: `"mean"` over the predictions of a group that count (0 if there is none): [...], a scalar for
                labels [N]; or `"none"`: [..., N], 0 where a prediction does not count.

        Raises:
            ValueError: for `"none"`, if the architecture has a loss for groups only.
        """
        with torch.autocast(self.device.type, enabled=False):
            evidence = outputs if isinstance(outputs, Evidence) else self.evidence(outputs, labels)
            if reduction == "mean":
                return self.network(evidence)
            if reduction == "none":
                return self.network.losses(evidence).masked_fill(~evidence.counts, 0.0)
        raise ValueError(f"Unknown reduction {reduction!r}: choose 'mean' or 'none'.")

    def freeze(self) -> "Surrogate":
        """The surrogate in evaluation mode, with parameters that do not learn."""
        return self.eval().requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leaves the start to each network: at its start a surrogate is its hand-made twin."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs) -> "Surrogate":
        """Loads a surrogate from a folder or the Hub, from safetensors only.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository.
            args, config, kwargs: as in `PreTrainedModel.from_pretrained` (`revision`, `token`, `subfolder`, ...).
                Weights are always float32.

        Raises:
            ValueError: if what is there is no surrogate, or one for another task.
            OSError: if the weights are missing, a pickle, or damaged.
        """
        where = str(pretrained_model_name_or_path)
        if not isinstance(config, SurrogateConfig):
            config, kwargs = cls.load_config(where if config is None else str(config), **kwargs)
        if config.task != cls.task:
            raise ValueError(
                f"{where} is a surrogate for {config.task}, but {cls.__name__} is for {cls.task}: "
                "load it with AutoSurrogate, and use it for a model of its task."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
        try:
            surrogate, info = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"The weights in {where} are damaged ({error}): the file is truncated or was not written to its end. "
                "Download or save the surrogate again."
            ) from error
        if info["missing_keys"]:
            raise OSError(
                f"The weights in {where} lack {', '.join(sorted(info['missing_keys']))}, which its configuration asks "
                "for: it was saved by another version, or its files do not belong together."
            )
        for parameter in surrogate.parameters():
            # Tensors lie in the file's memory as they come. Aligned ones give the same loss, to the bit, as before.
            parameter.data = parameter.data.clone()
        return (surrogate, info) if wants_info else surrogate

    @staticmethod
    def load_config(where: str, **kwargs: Any) -> tuple[SurrogateConfig, dict[str, Any]]:
        """The configuration of the surrogate at a folder or repository, and the keywords for loading its weights.

        Raises:
            ValueError: if there is another kind of model.
        """
        names = ("cache_dir", "force_download", "token", "revision", "subfolder", "local_files_only")
        place = {name: kwargs[name] for name in names if name in kwargs}
        path = cached_file(where, CONFIG_NAME, **place)
        if path is None:
            raise OSError(f"{where} has no {CONFIG_NAME}, so there is no surrogate in it.")
        with open(path, encoding="utf-8") as file:
            found = json.load(file).get("model_type")
        if found != SurrogateConfig.model_type:
            raise ValueError(
                f"{where} is no surrogate: its {CONFIG_NAME} says model_type {found!r}, not "
                f"{SurrogateConfig.model_type!r}. Pass a folder written by a surrogate, or its Hub id."
            )
        config, unused = SurrogateConfig.from_pretrained(where, return_unused_kwargs=True, **kwargs)
        return config, unused | place


def output_tensor(outputs: Any, name: str, index: int = 0) -> torch.Tensor:
    """A tensor of a model's outputs, by its name or, in a tuple, its position.

    A tuple that starts with a scalar holds the model's own loss there, which is passed over.
    """
    if isinstance(outputs, Mapping):
        if outputs.get(name) is None:
            raise ValueError(f"The surrogate reads the model's {name!r}, but its outputs are {sorted(outputs)}.")
        return outputs[name]
    if isinstance(outputs, tuple | list):
        tensors = [tensor for tensor in outputs if torch.is_tensor(tensor) and tensor.dim() > 0]
        if len(tensors) <= index:
            raise ValueError(f"The surrogate reads the model's {name!r}, but its outputs hold no tensor at {index}.")
        return tensors[index]
    if not torch.is_tensor(outputs):
        raise ValueError(f"The surrogate wants a model's outputs, but this is {type(outputs).__name__}.")
    return outputs


def counted(labels: torch.Tensor, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels with -100 replaced by 0, and which of them count.

    Raises:
        ValueError: for labels that are no integers or out of range.
    """
    if labels.is_floating_point():
        raise ValueError(f"The surrogate wants integer labels, class indices, but these are {labels.dtype}.")
    counts = labels != IGNORED_LABEL
    wrong = counts & ((labels < 0) | (labels >= num_labels))
    if wrong.any():
        raise ValueError(
            f"Labels must be 0 to {num_labels - 1} (the model puts out {num_labels} logits), or {IGNORED_LABEL} to be "
            f"ignored, but {int(wrong.sum())} are not, such as {int(labels[wrong][0])}."
        )
    return labels.masked_fill(~counts, 0), counts
