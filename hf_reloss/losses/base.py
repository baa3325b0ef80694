"""What a surrogate looks at, and the networks from that to a loss."""

from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import nn
from torch.func import functional_call

from ..distributed import gathered, number_of_processes, padded


class Evidence(NamedTuple):
    """The part of a model's outputs and labels that a surrogate looks at.

    What counts are a group's N predictions or, where a prediction has many parts, as a text has tokens and a body has
    joints, their P parts; each kind of evidence says more of what the tensors hold.

    Attributes:
        outputs: [..., N, D] or [..., N, P, D] float32, D being one dimension or more. The gradient penalty of the
            objective is taken here.
        labels: [..., N, ...], within range also where the prediction does not count.
        counts: [..., N] or [..., N, P] bool, False where the label was -100 or there is none.
    """

    outputs: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor


def check_labels(labels: Any) -> None:
    """Refuses labels that are no tensor, such as lists of dictionaries of boxes; None is for what reads them to refuse.

    Raises:
        ValueError: for these.
    """
    if labels is None or torch.is_tensor(labels):
        return
    kinds = {type(each).__name__ for each in labels} if isinstance(labels, list | tuple) else set()
    of = f" of {' and '.join(sorted(kinds))}" if kinds else ""
    raise ValueError(
        f"A surrogate wants labels as a tensor, but got a {type(labels).__name__}{of}: numbers become one by "
        "torch.tensor(labels); boxes and masks, in dictionaries, have no surrogate."
    )


def gathered_evidence(evidence: Evidence) -> Evidence:
    """The evidence of all processes as one group, padded to the largest with what does not count."""
    if number_of_processes() == 1:
        return evidence
    sizes = torch.tensor([*evidence.outputs.shape, *evidence.labels.shape], device=evidence.outputs.device)
    largest = sizes.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    shape: list[int] = largest.tolist()
    of_outputs, of_labels = shape[: evidence.outputs.dim()], shape[evidence.outputs.dim() :]
    return Evidence(
        gathered(padded(evidence.outputs, of_outputs)),
        gathered(padded(evidence.labels, of_labels)),
        gathered(padded(evidence.counts, of_outputs[: evidence.counts.dim()]).to(torch.uint8)).bool(),
    )


class SurrogateNetwork(nn.Module):
    """The network from evidence to loss, one architecture of a kind of evidence.

    It defines `losses`, where each prediction has a loss of its own, or else `forward`. The parameters of its
    `__init__` are its options, which a `SurrogateConfig` gives it by name.
    """

    architecture: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    """The tasks whose surrogates find it by its `architecture`, wherever it is defined."""
    defined: ClassVar[dict[tuple[str, str], type["SurrogateNetwork"]]] = {}
    """All networks that there are by now, by task and architecture."""
    count_dims: int = 1
    """How many of the dimensions of `Evidence.counts` are those of one group: 1 for [N], 2 for [N, P]."""
    gradient_penalty: float = 10.0
    """The weight λ of the gradient penalty with which it is learned by default."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "architecture" in vars(cls):
            SurrogateNetwork.defined |= {(task, cls.architecture): cls for task in cls.tasks}

    def losses(self, evidence: Evidence) -> torch.Tensor:
        """The loss of each prediction or part of one, of the shape of `evidence.counts`."""
        raise ValueError(
            f"The loss of the architecture {self.architecture!r} is that of a group: its predictions have none of "
            "their own, as reduction='none' asks for."
        )

    def forward(self, evidence: Evidence) -> torch.Tensor:
        """The loss [...] of each group: the mean over what counts in it, 0 if there is nothing."""
        return self.mean(self.losses(evidence), evidence.counts)

    @classmethod
    def is_of_groups(cls) -> bool:
        """Whether its loss is that of a group, of which no prediction has a part of its own."""
        return cls.losses is SurrogateNetwork.losses

    def mean(self, losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Means [...] over what counts in each group, 0 where nothing does; of `losses` of the shape of `counts`."""
        return losses.masked_fill(~counts, 0.0).flatten(-self.count_dims).sum(-1) / self.number(counts).clamp(min=1)

    def number(self, counts: torch.Tensor) -> torch.Tensor:
        """How many count in each group, [...]."""
        return counts.flatten(-self.count_dims).sum(-1)

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """The norms of its gradients, and those that the penalty holds them to.

        Returns:
            The norm of the gradient of n times the group's loss, n being how many count in it, with respect to the
            outputs of each of them (the gradient of its own loss, where it has one), of the shape of `counts`, which
            can be differentiated by the weights; and the norms that are wanted: 1 where it counts, as in the paper.
        """
        return self._norms(evidence, {}), evidence.counts.float()

    def norms_of_start(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """`gradient_norms` that are held to those of its start, where all parameters are 0.

        Of a batch every eighth group is taken: to differentiate twice takes time.
        """
        batched = evidence.counts.dim() > self.count_dims
        sample = Evidence(*(tensor[::8] for tensor in evidence)) if batched else evidence
        start = {name: torch.zeros_like(parameter) for name, parameter in self.named_parameters()}
        return self._norms(sample, {}), self._norms(sample, start).detach()

    def _norms(self, evidence: Evidence, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Norms of the gradients, with some of its parameters replaced."""
        outputs = evidence.outputs.detach().requires_grad_()
        losses = functional_call(self, parameters, (evidence._replace(outputs=outputs),))
        weighted = (losses * self.number(evidence.counts)).sum()
        gradient = torch.autograd.grad(weighted, outputs, create_graph=True)[0]
        return gradient.flatten(evidence.counts.dim()).norm(dim=-1)

    def canonical(self, evidence: Evidence) -> Evidence:
        """The evidence in the form in which it is learned: freed of what its metrics do not see, if at all.

        Used as a loss, it reads the evidence as it is.
        """
        return evidence

    def adopt(self, version: Version) -> None:
        """Turns weights that an older version of this package saved, and that were just loaded, into today's.

        Raises:
            ValueError: if what they meant cannot be known any more.
        """

    curve_of: ClassVar[str | None] = "margin"
    """What `curve` is a function of: a margin, the probability of the label; or None, if there is no such curve."""

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """What was learned of one prediction or part of one, to draw: losses [n] of points [n]."""
        raise ValueError(f"The architecture {self.architecture!r} has no curve of one variable to draw.")

    def learned(self) -> dict[str, str]:
        """What else was learned, in words, by name."""
        return {}

    def confusion_costs(self) -> torch.Tensor | None:
        """What deciding for one class costs where another is right, to draw: [C, C] by label and decision, if known."""
        return None
