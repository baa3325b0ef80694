"""Surrogates for documents that are ranked for queries."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from hf_reloss import AutoSurrogate, ReLossTrainer, ReLossTrainingArguments, SurrogateConfig, load_metric
from hf_reloss.ranking import soft_rank
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel

from ..training.test_trainer import assert_same, weights

NAMES = ("ndcg", "map", "mrr")


def drawn(queries: int, documents: int = 7, seed: int = 0):
    """Scores, and relevance 0 to 2; the last documents of some queries do not exist."""
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.randint(-2, 3, (queries, documents), generator=generator).clamp(min=0).float()
    relevance[::3, -2:] = -100
    return torch.randn(queries, documents, generator=generator) + 0.3 * relevance.clamp(min=0), relevance


def of_queries(loss, scores, relevance):
    return loss(scores, relevance, reduction="none").sum(-1)


@pytest.mark.parametrize("name", NAMES)
def test_of_scores_far_apart_it_is_minus_the_logarithm_of_the_metric(name):
    scores, relevance = drawn(40)
    metric = load_metric(name)
    loss = SurrogateForMultilabel.for_metric(metric, scale_weight=1e-12)
    statistics = metric.statistics(scores, relevance)
    judged = (statistics[:, 1] > 0) & (relevance == 0).any(-1)
    expected = -statistics[judged, 0].log().float()
    found = of_queries(loss, 1e5 * scores, relevance)[judged].detach()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["precision_at_k", "ranked_recall_at_k"])
def test_shares_of_the_first_places_start_as_the_mean_precision(name):
    scores, relevance = drawn(20)
    metric = load_metric(name, k=3)
    assert SurrogateForMultilabel.has_soft_metric(metric)
    loss, of_map = (SurrogateForMultilabel.for_metric(x, scale_weight=1e-9) for x in (metric, load_metric("map")))
    assert torch.equal(loss(scores, relevance), of_map(scores, relevance))
    assert loss.config.scores == {name: {"k": 3}}


def test_at_its_start_it_is_the_metric_of_soft_ranks():
    scores, relevance = drawn(20)
    loss = SurrogateForMultilabel.for_metric("ndcg", scale_weight=1e-9)
    for query in range(20):
        exists = relevance[query] >= 0
        score, gain = scores[query, exists], relevance[query, exists]
        if not (gain > 0).any() or (gain > 0).all():
            continue
        rank = soft_rank(-score, method="pairwise", steepness=1.0)  # 0 is the highest
        ideal = (gain.sort(descending=True).values / torch.log2(2.0 + torch.arange(len(gain)))).sum()
        expected = -torch.log((gain / torch.log2(2 + rank)).sum() / ideal)
        found = of_queries(loss, scores[query][None], relevance[query][None]).detach()
        assert float(found) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_relevant_document_further_up_and_another_further_down_never_cost_more(name):
    loss = SurrogateForMultilabel.for_metric(name, scale_weight=1e-9)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    scores, relevance = drawn(30)
    relevance = (relevance == 2).float() - 100.0 * (relevance < 0)  # one kind of relevance
    scores.requires_grad_()
    loss(scores, relevance).backward()
    irrelevant = relevance == 0
    assert (scores.grad[irrelevant] >= -1e-8).all()
    assert (scores.grad[relevance < 0] == 0).all()
    assert (scores.grad.masked_fill(relevance <= 0, 0).sum(-1) <= 1e-8).all()  # all relevant ones together


@pytest.mark.parametrize("name", NAMES)
def test_documents_that_do_not_exist_change_nothing(name):
    scores, relevance = drawn(12)
    loss = SurrogateForMultilabel.for_metric(name)
    wider = torch.cat([scores, torch.randn(12, 5)], dim=1)
    padded = torch.cat([relevance, torch.full((12, 5), -100.0)], dim=1)
    assert float(loss(wider, padded)) == pytest.approx(float(loss(scores, relevance)), abs=1e-6)


def test_each_query_counts_alike_however_many_documents_it_has():
    loss = SurrogateForMultilabel.for_metric("map", scale_weight=1e-9)
    few = F.pad(torch.tensor([[1.0, 2.0]]), (0, 6)), F.pad(torch.tensor([[1.0, 0.0]]), (0, 6), value=-100.0)
    many = torch.zeros(1, 8), torch.tensor([[1.0] + 7 * [0.0]])
    together = loss(*(torch.cat(pair) for pair in zip(few, many, strict=True)))
    assert float(together) == pytest.approx((float(loss(*few)) + float(loss(*many))) / 2, abs=1e-6)


def test_without_anything_relevant_there_is_no_loss_but_the_pull():
    scores, relevance = drawn(6)
    for name in NAMES:
        loss = SurrogateForMultilabel.for_metric(name, scale_weight=1e-9)
        for labels in (relevance.clamp(max=0), relevance.clamp(min=1), torch.full_like(relevance, -100)):
            assert float(loss(scores, labels)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"whole numbers, 0 or more, or -100 to be ignored, but there is 0\.5"):
        loss(scores, relevance.clamp(min=0) / 2)
    with pytest.raises(ValueError, match=r"wants one metric of rankings, .* but got f1"):
        SurrogateForMultilabel(SurrogateConfig(task="multilabel", architecture="ranks", scores={"f1": {}}))


def test_it_is_saved_and_loaded(tmp_path):
    scores, relevance = drawn(10)
    loss = SurrogateForMultilabel.for_metric(load_metric("ndcg", k=3))
    loss.save_pretrained(tmp_path)
    loaded = AutoSurrogate.from_pretrained(tmp_path)
    assert torch.equal(loaded(scores, relevance), loss(scores, relevance))


class Questions(torch.utils.data.Dataset):
    """Documents of 6 features, of which the first two tell how relevant they are; some questions have fewer."""

    def __init__(self, number: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(number, 10, 6, generator=generator)
        value = self.features[..., 0] + 0.5 * self.features[..., 1] + torch.randn(number, 10, generator=generator)
        self.labels = (value > 1.2).float() + (value > 2).float()
        self.labels[::3, 7:] = -100

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int):
        return {"features": self.features[row], "labels": self.labels[row]}


class Scorer(nn.Module):
    """A score for each document, trained on whether it is relevant."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = PreTrainedConfig()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features, labels=None):
        logits = self.layers(features).squeeze(-1)
        if labels is None:
            return {"logits": logits}
        counts = labels >= 0
        return {
            "loss": F.binary_cross_entropy_with_logits(logits[counts], labels[counts].clamp(max=1)),
            "logits": logits,
        }


def test_one_changed_line_trains_on_it_and_resumes(tmp_path):
    def trainer(folder):
        args = ReLossTrainingArguments(
            str(folder), num_train_epochs=6, per_device_train_batch_size=16, learning_rate=1e-2, save_strategy="steps",
            save_steps=70, report_to="none", disable_tqdm=True, eval_strategy="epoch", seed=1,
        )  # fmt: skip
        return ReLossTrainer(
            Scorer(), args, train_dataset=Questions(300, 0), eval_dataset=Questions(150, 1), metric=load_metric("ndcg")
        )

    run = trainer(tmp_path / "whole")
    run.train()
    assert run.loss_report.gain is not None  # judged by the metric
    assert run.loss_report.decision is None  # which does not read what is decided
    assert run.surrogate.config.architecture == "ranks"
    assert math.isfinite(run.evaluate()["eval_alignment"])
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-70"))
    assert_same(weights(resumed), weights(run))
