"""The base of all surrogates: a `PreTrainedModel` from a model's outputs and labels to a loss."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from ..distributed import undivided
from ..hub.facts import SurrogateFacts
from ..hub.pages import write_page
from ..hub.plain import plain
from ..hub.publishing import included, publish
from ..losses.base import Evidence, SurrogateNetwork, check_labels
from ..losses.hand_made import hand_made_losses
from ..losses.hand_made.base import AdjustableLoss, HandMadeLoss
from ..metrics import Metric
from ..metrics.base import IGNORED_LABEL
from ..progress import without_bars
from .config import SurrogateConfig
from .loading import PLACE, checked, load_config, load_weights, require_all

RENAMED = {("embeddings", "margin"): "margin_loss"}
"""Architectures that version 0.1 saved under other names."""


class Surrogate(PreTrainedModel):
    """A learned loss: lower when the metric is better.

    A subclass reads one kind of evidence: it defines `reads`, `evidence`, `recorded`, `original_losses`, `for_metric`,
    the networks that take the evidence to a loss and, as `task`, a word of its own. In any training loop,
    `surrogate(outputs, labels)` is the loss. It computes in float32, whatever the precision around it.
    """

    config_class = SurrogateConfig
    base_model_prefix = "surrogate"
    main_input_name = "outputs"
    supports_gradient_checkpointing = False
    task: ClassVar[str]
    """The word for its task, by which it is found."""
    defined: ClassVar[dict[str, type]] = {}
    """All surrogate classes that there are by now, by task."""
    networks: ClassVar[tuple[type[SurrogateNetwork], ...]]
    """Its architectures."""
    read_columns: ClassVar[tuple[str, ...]]
    """The recorded columns that `evidence` reads, beside the labels."""
    scored: ClassVar[tuple[str, str]]
    """The two of the recorded columns that a metric compares: predictions and references."""
    original_loss: ClassVar[str]
    """Name of the loss that `original_losses` gives."""
    scores_logits: ClassVar[bool] = False
    """Whether metrics compare one row of logits with one label per example: as compute_metrics gets them."""
    of_values: ClassVar[bool] = False
    """Whether models put out one number per example."""
    swaps_labels: ClassVar[bool] = False
    """Whether labels of groups are replaced by those of other examples, for no list of classes holds them."""
    metric_options: ClassVar[Mapping[str, Any]] = {}
    """Options of metrics that hold for its predictions, where they were left at their defaults."""
    metric_words: ClassVar[Mapping[str, str]] = {}
    """Metrics that scripts for the task call by words which elsewhere stand for others: their names by these words."""
    has_parts: ClassVar[bool] = False
    """Whether a prediction is a sequence of parts of which some do not count: only those that do are stored."""
    answers: ClassVar[bool] = False
    """Whether what a metric compares are texts that a model has found, whether or not it can write."""
    keeps_labels_from_model: ClassVar[bool] = False
    """Whether a model is not given the labels where its own loss is not asked for: over a vocabulary it costs much."""
    pipeline_tag: ClassVar[str | None] = None
    """The Hub's word for the task of models that it is a loss for, if there is one for all of them."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "task" in vars(cls):
            Surrogate.defined[cls.task] = cls

    def __init__(self, config: SurrogateConfig):
        if config.task != self.task:
            raise ValueError(
                f"{type(self).__name__} is for {self.task}, but its configuration is for {config.task}: pass "
                f"SurrogateConfig(task={self.task!r})."
            )
        config.architecture = config.architecture or self.networks[0].architecture
        config.architecture = RENAMED.get((config.task, config.architecture), config.architecture)
        super().__init__(config)
        networks = {network.architecture: network for network in self.networks}
        if config.architecture not in networks:
            hand_made_losses()  # which are defined as soon as they are imported
            of_task = {name: kind for (task, name), kind in SurrogateNetwork.defined.items() if task == self.task}
            networks = of_task | networks
        if config.architecture not in networks:
            choices = " or ".join(map(repr, networks))
            raise ValueError(
                f"Unknown architecture {config.architecture!r} for {self.task}: choose {choices}. If it is defined "
                f"outside of hf_reloss, import the module that defines it first.{config.advice}"
            )
        self.network: SurrogateNetwork = self._made(networks[config.architecture], config)
        self.post_init()

    @staticmethod
    def _made(network: type[SurrogateNetwork], config: SurrogateConfig) -> SurrogateNetwork:
        try:
            return network(**config.options_of(network))
        except TypeError as error:  # of a parameter that there is not, or has no default
            raise ValueError(
                f"The options of the architecture {config.architecture!r} do not fit: {plain(error)}."
            ) from None

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        """Whether a model with these outputs and labels is of its task, judged by their names and shapes."""
        raise NotImplementedError

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What is kept of a batch of n predictions, to learn from: tensors [n, ...].

        Among them are what `evidence` reads, under the names that it reads them by, `labels`, and what a metric
        compares, the two columns `scored`. Where the sizes of batches differ, dimensions after the first are later
        padded with -100.

        Args:
            outputs, labels: as for `evidence`.
            inputs: what the model was given.
        """
        raise NotImplementedError

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "Surrogate":
        """A fresh surrogate whose structure fits a metric: if it can be, its soft form.

        Args:
            metric: what `load_metric` takes.
            options: of `SurrogateConfig`, beside those that the metric asks for, or instead of them.
        """
        raise NotImplementedError

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        """Whether `for_metric` gives the soft form of the very metric, which serves as a loss with nothing learned."""
        raise NotImplementedError

    def begin(self, predictions: datasets.Dataset, metric: Metric) -> None:
        """Takes from predictions what is not learned by ranking, before learning begins; by default nothing.

        Args:
            predictions: as `record_predictions` gives them; all processes have the same, and call it.
            metric: that is to be learned.
        """

    def example(self) -> tuple[str, str]:
        """Made-up outputs of a model and labels for them, as code with torch, to show how it is used."""
        raise NotImplementedError

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        """Takes the evidence from a model's outputs (a `ModelOutput`, a dict, a tuple or a tensor) and its labels.

        It also takes it from what `recorded` kept, with group dimensions in front.

        Raises:
            ValueError: for outputs of another task, labels out of range, values that are not finite.
        """
        raise NotImplementedError

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        """The loss that the task is usually trained on, to compare with, of the shape of `evidence.counts`."""
        raise NotImplementedError

    def forward(self, outputs: Any, labels: torch.Tensor | Any = None, *, reduction: str = "mean") -> torch.Tensor:
        """The loss.

        Args:
            outputs: what the model put out, or `Evidence`.
            labels: [..., N] int64; -100 does not count. None with `Evidence`.
            reduction: `"mean"` over the predictions of a group that count (0 if there is none): [...], a scalar for
                labels [N]; or `"none"`: of the shape of `Evidence.counts`, 0 where it does not count.

        Raises:
            ValueError: for `"none"`, if the architecture has a loss for groups only; for labels that are no tensor.
        """
        check_labels(labels)
        with torch.autocast(self.device.type, enabled=False):
            evidence = outputs if isinstance(outputs, Evidence) else self.evidence(outputs, labels)
            if reduction == "mean":
                return self.network(evidence)
            if reduction == "none":
                return self.network.losses(evidence).masked_fill(~evidence.counts, 0.0)
        raise ValueError(f"Unknown reduction {reduction!r}: choose 'mean' or 'none'.")

    @torch.no_grad()
    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """What was learned of one prediction or part of one: losses [n] of points [n], of the network's `curve_of`.

        Where the loss is a group's, it is -log of a soft hit.

        Raises:
            ValueError: if the architecture has no such curve.
        """
        return self.network.curve(points.to(self.device)).cpu()

    def freeze(self) -> "Surrogate":
        """The surrogate in evaluation mode, with parameters that do not learn."""
        return self.eval().requires_grad_(False)

    def save_pretrained(  # type: ignore[override]  # further options go by their names
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        card_data: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves configuration, weights and a page that says what it is, README.md with a picture.

        Args:
            save_directory: the folder.
            is_main_process: whether this process writes.
            push_to_hub: whether to publish it, too.
            repo_id: of the repository that it is for, which the page names; if it is published, by default the
                folder's name.
            card_data: for the metadata of the page, such as `{"license": "mit", "datasets": ["squad"]}`.
            kwargs: as in `PreTrainedModel.save_pretrained`; of `push_to_hub`, if it is published.
        """
        names = ("commit_message", "commit_description", "private", "revision", "create_pr")
        publishing = {name: kwargs.pop(name) for name in names if name in kwargs}
        kwargs.pop("max_shard_size", None)  # for weights are loaded from one file only
        try:
            with without_bars():
                super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        except SafetensorError as error:
            raise OSError(f"The weights could not be written to {save_directory}: {error}.") from error
        if not is_main_process:
            return
        write_page(self.facts(), save_directory, repo_id, **(card_data or {}))
        if push_to_hub:
            publishing |= {"token": kwargs.get("token"), "card_data": card_data}
            self.push_to_hub(repo_id or Path(save_directory).name, **publishing)

    def push_to_hub(  # type: ignore[override]  # weights are one file, without shards
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        card_data: Mapping[str, Any] | None = None,
        tags: list[str] | None = None,
        **options: Any,
    ) -> str:
        """Publishes it with its page, in one commit: all of it, or if anything fails nothing.

        Args:
            repo_id: of a repository, which is made if there is none.
            commit_message: of the commit.
            card_data: for the metadata of the page, such as `{"license": "mit", "datasets": ["squad"]}`.
            tags: further ones of the page.
            options: `commit_description`, `private`, `token`, `revision`, `create_pr`, as in
                `hf_reloss.hub.publishing.publish`.

        Returns:
            The address of the commit.

        Raises:
            OSError: if the server refused or failed.
        """
        card_data = dict(card_data or {})
        if tags:
            card_data["tags"] = [*card_data.get("tags", []), *tags]

        def write(folder: str, repo_id: str) -> None:
            self.save_pretrained(folder, repo_id=repo_id, card_data=card_data)

        return publish(write, repo_id, commit_message=commit_message or f"Upload {type(self).__name__}", **options)

    def facts(self) -> SurrogateFacts:
        """What there is to say of it, for its page and picture."""
        config, default = self.config, type(self.config)()
        elsewhere = {"task", "architecture", "metric", "record", "origin", "hf_reloss_version"}
        learned = self.network.learned()
        names = set(type(config).__annotations__) - elsewhere - learned.keys()
        return SurrogateFacts(
            task=self.task,
            architecture=config.architecture,
            kind=self._kind(),
            usual_loss=self.original_loss,
            metric=config.metric,
            origin=config.origin,
            record=config.record or {},
            options={name: of for name in sorted(names) if (of := getattr(config, name)) != getattr(default, name)},
            learned=learned,
            parameters=self.num_parameters(),
            example=self.example(),
            pipeline_tag=self.pipeline_tag,
            curve=None if self.network.curve_of is None else self.curve,
            curve_of=self.network.curve_of,
            costs=self.network.confusion_costs(),
        )

    def _kind(self) -> str:
        """Whether it is adapted, hand-made, the soft form of a metric with nothing learned, or learned."""
        if isinstance(self.network, HandMadeLoss):
            return "adapted" if isinstance(self.network, AdjustableLoss) else "hand-made"
        # At its start, a surrogate is the soft form of its metric, and all that is learned is 0.
        return "learned" if any(parameter.any() for parameter in self.parameters()) else "soft"

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leaves the start to each network: at its start a surrogate is the soft metric."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> "Surrogate":
        """Loads a surrogate from a folder or the Hub, from safetensors only.

        Those of the organisation `reloss` come with this package: without a `revision` they are taken from there.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository.
            args, config, kwargs: as in `PreTrainedModel.from_pretrained` (`revision`, `token`, `subfolder`, ...).
                Weights are always float32.

        Raises:
            ValueError: if what is there is no surrogate, one for another task, or its configuration is not valid.
            OSError: if the weights are missing, a pickle, damaged, or do not fit the configuration.
        """
        where = str(pretrained_model_name_or_path)
        source = str(included(where, **kwargs) or where)
        if isinstance(config, SurrogateConfig):
            config = checked(config)
        else:
            config, kwargs = load_config(where if config is None else str(config), **kwargs)
        if config.task != cls.task:
            raise ValueError(
                f"{where} is a surrogate for {config.task}, but {cls.__name__} is for {cls.task}: "
                "load it with AutoSurrogate, and use it for a model of its task."
            )
        weights = load_weights(source, **{name: kwargs.pop(name) for name in PLACE if name in kwargs})
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True}
        try:
            with undivided(), without_bars():
                loaded: Any = super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        surrogate, info = loaded
        require_all(info, where)
        surrogate.name_or_path = surrogate.config.name_or_path = source
        for parameter in surrogate.parameters():
            # Tensors lie in the file's memory as they come. Aligned ones give the same loss, to the bit, as before.
            parameter.data = parameter.data.clone()
        try:
            surrogate.network.adopt(config.version)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return loaded if wants_info else surrogate


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


def class_indices(labels: torch.Tensor, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of any integer type as int64 with -100 replaced by 0, and which of them count.

    Raises:
        ValueError: for labels that are no integers or out of range.
    """
    if labels.is_floating_point():
        raise ValueError(f"The surrogate wants integer labels, class indices, but these are {labels.dtype}.")
    labels = labels.long()  # first: compared with a short type, numbers out of its range wrap around
    counts = labels != IGNORED_LABEL
    wrong = counts & ((labels < 0) | (labels >= num_labels))
    if wrong.any():
        raise ValueError(
            f"Labels must be 0 to {num_labels - 1} (the model puts out {num_labels} logits), or {IGNORED_LABEL} to be "
            f"ignored, but {int(wrong.sum())} are not, such as {int(labels[wrong][0])}."
        )
    return labels.masked_fill(~counts, 0), counts
