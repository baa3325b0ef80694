"""What is saved is what was learned: loaded in another process, every architecture gives the same loss to the bit."""

import functools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_reloss import AutoSurrogate, Surrogate, SurrogateConfig, hand_made_loss, hand_made_losses, load_metric
from hf_reloss.losses.learned.counts import GENERAL_SCORES
from hf_reloss.surrogates.classification import SurrogateForClassification
from hf_reloss.surrogates.embeddings import SurrogateForEmbeddings
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel
from hf_reloss.surrogates.regression import SurrogateForRegression
from hf_reloss.surrogates.segmentation import SurrogateForSegmentation
from hf_reloss.surrogates.spans import SurrogateForSpans
from hf_reloss.surrogates.tokens import SurrogateForTokens


def squared(predictions, references):
    return 0.5


def with_costs() -> Surrogate:
    surrogate = SurrogateForClassification(SurrogateConfig(architecture="credit", loss_options={"classes": 3}))
    surrogate.network.costs.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    return surrogate


LEARNED = {
    "accuracy": lambda: SurrogateForClassification.for_metric("accuracy"),
    "accuracy, trust region": lambda: SurrogateForClassification.for_metric("accuracy", trust_region=True),
    "f1 with options": lambda: SurrogateForClassification.for_metric(
        load_metric("f1", average="weighted", labels=[0, 2], zero_division=1.0)
    ),
    "f1 of some classes": lambda: SurrogateForClassification.for_metric(load_metric("f1", average="macro", labels=[1])),
    "balanced accuracy": lambda: SurrogateForClassification.for_metric("balanced_accuracy", trust_region=True),
    "function": lambda: SurrogateForClassification.for_metric(load_metric(squared)),
    "roc_auc": lambda: SurrogateForClassification.for_metric("roc_auc"),
    "cohen_kappa": lambda: SurrogateForClassification.for_metric("cohen_kappa"),
    "costs": with_costs,
    "mixture, given the other way round": lambda: SurrogateForClassification(
        SurrogateConfig(architecture="counts", scores={"recall": {"average": "macro"}, "f1": {"average": "macro"}})
    ),
    "paper": lambda: SurrogateForClassification(SurrogateConfig(architecture="paper", hidden_size=8)),
    "set": lambda: SurrogateForClassification(SurrogateConfig(architecture="set", hidden_size=8)),
    "bleu": lambda: SurrogateForTokens.for_metric("bleu", reach=2, trust_region=True),
    "rougeL": lambda: SurrogateForTokens.for_metric("rougeL"),
    "tokens, paper": lambda: SurrogateForTokens(SurrogateConfig(task="tokens", architecture="paper", hidden_size=8)),
    "squad_f1": lambda: SurrogateForSpans.for_metric("squad_f1"),
    "exact match": lambda: SurrogateForSpans.for_metric("squad_exact_match", trust_region=True),
    "pck": lambda: SurrogateForKeypoints.for_metric(load_metric("pck", alpha=0.1)),
    "oks": lambda: SurrogateForKeypoints.for_metric(load_metric("oks", sigmas=(0.1, 0.2, 0.3))),
    "labels, macro-F1": lambda: SurrogateForMultilabel.for_metric(load_metric("f1", average="macro")),
    "labels, F1 of examples": lambda: SurrogateForMultilabel.for_metric(load_metric("f1", average="samples")),
    "subset accuracy": lambda: SurrogateForMultilabel.for_metric("subset_accuracy", trust_region=True),
    "labels, function": lambda: SurrogateForMultilabel.for_metric(load_metric(squared)),
    "squared error": lambda: SurrogateForRegression.for_metric("mse"),
    "absolute error": lambda: SurrogateForRegression.for_metric("mae"),
    "quadratic kappa of grades": lambda: SurrogateForRegression.for_metric(
        load_metric("cohen_kappa", weights="quadratic")
    ),
    "spearmanr": lambda: SurrogateForRegression.for_metric("spearmanr"),
    "ranks": lambda: SurrogateForMultilabel.for_metric(load_metric("ndcg", k=2)),
    "recall_at_k": lambda: SurrogateForEmbeddings.for_metric("recall_at_k", loss_options={"temperature": 0.2}),
    "mean IoU": lambda: SurrogateForSegmentation.for_metric("mean_iou"),
    "pixel accuracy": lambda: SurrogateForSegmentation.for_metric("pixel_accuracy", trust_region=True),
    "pixels, function": lambda: SurrogateForSegmentation.for_metric(load_metric(squared)),
    "keypoints, paper": lambda: SurrogateForKeypoints(
        SurrogateConfig(task="keypoints", architecture="paper", num_pixels=64, hidden_size=8)
    ),
}


def hand_made(name: str) -> Surrogate:
    labels = [0, 0, 1, 2] if hand_made_losses(None)[name].wants_frequencies else None
    return hand_made_loss(name, labels, **({"classes": 3} if name == "class_correlation" else {}))


ALL = LEARNED | {name: functools.partial(hand_made, name) for name in hand_made_losses(None)}

PROGRAM = """
import json, sys, torch
from hf_reloss import AutoSurrogate

for folder in sys.argv[1:]:
    loss, inputs = AutoSurrogate.from_pretrained(folder), torch.load(f"{folder}/inputs.pt")
    print(json.dumps(loss(inputs["outputs"], inputs["labels"]).item().hex()))
"""


def trained(name: str) -> Surrogate:
    """A surrogate with weights as after training, each another one."""
    torch.manual_seed(len(name))
    surrogate = ALL[name]()
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if name == "class_correlation":
            surrogate.network.adjust(torch.randn(6))
    return surrogate


def made_up(surrogate: Surrogate) -> tuple[object, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if surrogate.task == "classification":
        return torch.randn(24, 3, generator=generator), torch.arange(24) % 3
    if surrogate.task == "multilabel":
        return torch.randn(24, 3, generator=generator), torch.randint(2, (24, 3), generator=generator)
    if surrogate.task == "regression":
        return torch.randn(24, 1, generator=generator), torch.randn(24, generator=generator)
    if surrogate.task == "embeddings":
        return torch.randn(24, 3, generator=generator), torch.arange(24) % 3
    if surrogate.task == "tokens":
        return torch.randn(4, 6, 9, generator=generator), torch.randint(9, (4, 6), generator=generator)
    if surrogate.task == "spans":
        start, end = torch.randn(2, 4, 12, generator=generator)
        return {"start_logits": start, "end_logits": end}, torch.tensor([[2, 4], [1, 1], [3, 8], [0, 0]])
    if surrogate.task == "segmentation":
        maps = torch.randint(3, (2, 6, 8), generator=generator)
        return torch.randn(2, 3, 3, 4, generator=generator), maps.masked_fill(maps[:1] == 0, 255)
    points = 8 * torch.rand(4, 3, 4, generator=generator) + torch.tensor([0.0, 0.0, 1.0, 8.0])
    points = points if surrogate.config.scores and "oks" in surrogate.config.scores else points[..., :3]
    return {"heatmaps": torch.rand(4, 3, 8, 8, generator=generator)}, points


def test_what_is_loaded_in_another_process_gives_the_same_loss_to_the_bit(tmp_path):
    expected = {}
    for place, name in enumerate(ALL):
        surrogate, folder = trained(name), tmp_path / str(place)
        outputs, labels = made_up(surrogate)
        expected[name] = surrogate(outputs, labels).item()
        surrogate.save_pretrained(folder)
        torch.save({"outputs": outputs, "labels": labels}, folder / "inputs.pt")
    folders = [str(tmp_path / str(place)) for place in range(len(ALL))]
    found = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, check=True)
    loaded = [float.fromhex(json.loads(line)) for line in found.stdout.splitlines()]
    assert dict(zip(ALL, loaded, strict=True)) == expected


def saved_by_0_1(surrogate: Surrogate, weights: list[float], folder) -> None:
    """As hf_reloss 0.1 saved it: names of scores sorted, weights in the order in which the scores were given."""
    surrogate.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hf_reloss_version": "0.1.0"}))
    tensors = load_file(folder / "model.safetensors")
    tensors["network.mixture.weights"] = torch.tensor(weights)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_of_an_older_mixture_each_weight_goes_to_its_score(tmp_path):
    surrogate = SurrogateForClassification.for_metric("roc_auc")
    given = dict(zip(GENERAL_SCORES, [2.0, 0.0, -1.0, 0.5, 1.0], strict=True))
    saved_by_0_1(surrogate, list(given.values()), tmp_path / "old")
    loaded = AutoSurrogate.from_pretrained(tmp_path / "old")
    names = [metric.name for metric in loaded.network.metrics]
    assert dict(zip(names, loaded.network.mixture.weights.tolist(), strict=True)) == given
    loaded.save_pretrained(tmp_path / "new")  # and stays there
    again = AutoSurrogate.from_pretrained(tmp_path / "new")
    assert torch.equal(again.network.mixture.weights, loaded.network.mixture.weights)


def test_an_older_mixture_of_unknown_order_is_refused(tmp_path):
    scores = {"recall": {"average": "macro"}, "f1": {"average": "macro"}}
    surrogate = SurrogateForClassification(SurrogateConfig(architecture="counts", scores=scores))
    saved_by_0_1(surrogate, [1.0, 0.0], tmp_path)
    with pytest.raises(ValueError, match=r"lost the order of its 2 scores \(f1, recall\).*learn it again"):
        AutoSurrogate.from_pretrained(tmp_path)


def test_an_older_surrogate_of_one_score_is_what_it_was(tmp_path):
    surrogate = SurrogateForClassification.for_metric(load_metric("f1", average="macro"))
    saved_by_0_1(surrogate, [0.7], tmp_path)
    assert AutoSurrogate.from_pretrained(tmp_path).network.mixture.weights.tolist() == pytest.approx([0.7])
