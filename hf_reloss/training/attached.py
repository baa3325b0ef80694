"""A surrogate as the model's own loss, for trainers and loops that know no other."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import find_labels

from ..losses.hand_made import hand_made_losses
from ..metrics.base import IGNORED_LABEL
from ..predictions.models import batch_labels, takes_labels, unwrapped
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from ..surrogates.hand_made import hand_made_loss
from ..surrogates.tokens import next_token_labels
from .arguments import check_model
from .strategies.base import read_evidence
from .strategies.choice import COME_ALONG
from .strategies.given import given_surrogate


class AttachedLoss:
    """A surrogate in the place of a model's own loss, until `detach`; `attach` makes one. In a `with` block it is
    detached at its end.

    Attributes:
        model: without what wraps it.
        surrogate: the loss; of a hand-made one None before the first batch, which shows what it is to read.
    """

    def __init__(self, model: nn.Module, loss: Surrogate | str | Path):
        check_model(model)
        self.model, self.loss = unwrapped(model), str(loss)
        names = find_labels(type(self.model))
        if not names or not takes_labels(self.model, names):
            raise ValueError(
                f"{type(self.model).__name__} is given no labels, so its loss is computed elsewhere: put ReLossMixin "
                "before its trainer, class Mine(ReLossMixin, ItsTrainer), or take the loss in the loop, loss(outputs, "
                "labels) with loss = AutoSurrogate.from_pretrained(...)."
            )
        former = vars(self.model).get("_loss_function")
        if isinstance(getattr(former, "__self__", None), AttachedLoss):
            raise ValueError(
                f"{type(self.model).__name__} trains on {former.__self__.loss!r} already: detach it first."
            )
        self.surrogate = _made(loss)
        self._names, self._former, self._is_taken = names, former, False
        if isinstance(self.model, PreTrainedModel):
            self._own = self.model.loss_function
            self.model.loss_function = self._loss_function
        before, after = self.model.register_forward_pre_hook, self.model.register_forward_hook
        self._hooks = [before(self._before_forward), after(self._after_forward, with_kwargs=True)]

    def detach(self) -> None:
        """Gives the model its own loss back."""
        for hook in self._hooks:
            hook.remove()
        if isinstance(self.model, PreTrainedModel):
            vars(self.model).pop("_loss_function", None)
            if self._former is not None:
                self.model.loss_function = self._former

    def __enter__(self) -> "AttachedLoss":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._is_taken = False

    def _loss_function(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stands for `model.loss_function`, which models call in as many ways as there are losses."""
        self._is_taken = True
        given = _by_name(self._own, args, kwargs)
        labels: Any
        if "start_logits" in given:
            outputs = {name: given[name] for name in ("start_logits", "end_logits")}
            labels = torch.stack([given["start_positions"], given["end_positions"]], dim=-1)
        else:
            logits, labels = given.get("pooled_logits", given.get("logits")), given.get("labels")
            if logits is None or labels is None:
                names = ", ".join(sorted(given))
                raise ValueError(
                    f"{type(self.model).__name__} compares {names}, which no surrogate reads: attach one to models of "
                    "classes, tokens or spans."
                )
            outputs = {"logits": logits}
            if self._own is ForCausalLMLoss:
                shifted = given.get("shift_labels")
                labels = next_token_labels(labels) if shifted is None else shifted
            labels = labels.masked_fill(labels == given.get("ignore_index", IGNORED_LABEL), IGNORED_LABEL)
        return self._value(outputs, labels, given.get("num_items_in_batch"))

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> Any:
        """Puts the loss into the outputs of a model that has computed its own without `loss_function`."""
        if self._is_taken:
            return None
        inputs = _by_name(model.forward, args, kwargs)
        labels = batch_labels(model, inputs, self._names)
        if labels is None:
            return None
        loss = self._value(outputs, labels, inputs.get("num_items_in_batch"))
        if isinstance(outputs, Mapping):
            return type(outputs)(**{"loss": loss} | {name: value for name, value in outputs.items() if name != "loss"})
        return (loss, *outputs[1:])

    def _value(self, outputs: Any, labels: torch.Tensor, items: torch.Tensor | int | None) -> torch.Tensor:
        """The loss; where a trainer says how many items the whole step has, the part of this batch in it."""
        if self.surrogate is None:
            self.surrogate = _hand_made(self.loss, self.model, outputs, labels)
        self.surrogate.to(labels.device)  # type: ignore[arg-type]  # transformers' decorator hides `self`
        with torch.autocast(labels.device.type, enabled=False):
            evidence = read_evidence(self.surrogate, outputs, labels)
            loss = self.surrogate(evidence)
        return loss if items is None else loss * evidence.counts.sum() / items


def attach(model: nn.Module, loss: Surrogate | str | Path) -> AttachedLoss:
    """Makes a surrogate the model's own loss: whatever trains on `model(**batch).loss` trains on it from now on.

    It replaces `model.loss_function`, by which transformers' models compute their loss; of models that do without one,
    such as BERT, the loss is replaced in what they put out. Labels of causal language models are moved to where they
    are predicted, as the model does. Where a Trainer passes `num_items_in_batch`, the loss is the batch's part of the
    mean over all items of a step. A loss of groups sees the batch that the model is given, in its own process. The
    surrogate is no part of the model, and is not saved with it.

    Args:
        model: a classifier, a tagger, a language model or one that answers with spans; it may be wrapped.
        loss: a `Surrogate` (which is frozen), a folder or Hub id of one, or the name of a hand-made loss.

    Returns:
        A handle with `detach()`, which is a context manager, too.

    Raises:
        TypeError: for what is no module.
        ValueError: for a model that is given no labels, or has a loss attached already; for what is no loss.

    Example:
        >>> with attach(model, "reloss/accuracy"):  # doctest: +SKIP
        ...     Trainer(model, args, train_dataset=train).train()
    """
    return AttachedLoss(model, loss)


def _made(loss: Surrogate | str | Path) -> Surrogate | None:
    """The loss, ready to be used; None for a hand-made one, which is of the form that the first batch has."""
    if not isinstance(loss, Surrogate | str | Path):
        raise ValueError(
            "attach wants a Surrogate, a folder or Hub id of one, or the name of a hand-made loss, but got "
            f"{type(loss).__name__}: a function goes to a Trainer, as compute_loss_func= or surrogate=."
        )
    if loss in [kind.word for kind in COME_ALONG if kind.word]:
        raise ValueError(f"{loss!r} is a way to train, for ReLossTrainer and ReLossMixin: attach a surrogate instead.")
    known = hand_made_losses(None)
    if isinstance(loss, str) and loss in known:
        if known[loss].wants_frequencies:
            raise ValueError(
                f"The loss {loss!r} wants to know how frequent classes are: attach hand_made_loss({loss!r}, labels) "
                "with the labels of the training data."
            )
        return None
    return given_surrogate(loss, nn.Module(), None, None).freeze()


def _hand_made(name: str, model: nn.Module, outputs: Any, labels: torch.Tensor) -> Surrogate:
    classes = {"classes": getattr(getattr(model, "config", None), "num_labels", None)}
    options = classes if "classes" in hand_made_losses(None)[name].options else {}
    return hand_made_loss(name, task=AutoSurrogate.reading(outputs, labels).task, **options).freeze()


def _by_name(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names that a function has for them."""
    signature = inspect.signature(function)
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return given
