"""Recall@k of embeddings, soft: what its loss is, what it learns, and a run with "auto"."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import ModelOutput

from hf_reloss import (
    AutoSurrogate,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForEmbeddings,
    load_metric,
)
from hf_reloss.learning.learn_surrogate import learn_surrogate
from hf_reloss.losses.learned.neighbours import supervised_contrastive
from hf_reloss.metrics.bootstrap import bootstrapped
from hf_reloss.predictions.groups import draw_groups
from hf_reloss.predictions.recorder import PredictionRecorder

from ..conftest import tiny_rows
from ..losses.test_metric_learning import TinyEmbedder, recall

RECALL = load_metric("recall_at_k")
EMBEDDINGS = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1, 3, -100, 0, -100, 2])  # 3 is the only one of its class


def soft() -> SurrogateForEmbeddings:
    return SurrogateForEmbeddings.for_metric(RECALL)


def reader() -> SurrogateForEmbeddings:
    return SurrogateForEmbeddings(SurrogateConfig(task="embeddings"))


class ContrastiveEmbedder(TinyEmbedder):
    """With the supervised contrastive loss for its own, at a temperature that is far too high."""

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        found = super().forward(features)
        if labels is None:
            return found
        loss = supervised_contrastive(reader().evidence(found, labels), temperature=3.0).mean()
        return ModelOutput(loss=loss, embeddings=found.embeddings)


def recorded(number: int = 1_600):
    """Embeddings of four classes that come apart in the course of a run."""
    generator = torch.Generator().manual_seed(0)
    recorder, centres = PredictionRecorder(), 2 * torch.eye(4)
    for step in range(number // 32):
        labels = torch.randint(4, (32,), generator=generator)
        embeddings = torch.randn(32, 4, generator=generator) + step * 32 / number * centres[labels]
        recorder.add({"embeddings": embeddings}, labels, step * 32 / number)
    return recorder.dataset()


def by_a_loop(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    """-log of the probability to draw a neighbour of one class, the mean over those that there are two of."""
    number, found = [i for i in range(len(labels)) if labels[i] >= 0], []
    for query in number:
        weights = {
            other: math.exp(float(F.cosine_similarity(embeddings[query], embeddings[other], dim=0)) / temperature)
            for other in number
            if other != query
        }
        same = sum(weight for other, weight in weights.items() if labels[other] == labels[query])
        if same:
            found.append(-math.log(same / sum(weights.values())))
    assert len(found) == 11
    return sum(found) / len(found)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_what_a_loop_over_queries_gives(temperature):
    loss = SurrogateForEmbeddings.for_metric("recall_at_k", loss_options={"temperature": temperature})
    expected = by_a_loop(EMBEDDINGS, LABELS, temperature)
    assert loss(EMBEDDINGS, LABELS).item() == pytest.approx(expected, rel=1e-4)
    assert loss(7.0 * EMBEDDINGS, LABELS).item() == pytest.approx(expected, rel=1e-4)
    together = loss(torch.stack([EMBEDDINGS, -EMBEDDINGS.flip(0)]), torch.stack([LABELS, LABELS]))
    torch.testing.assert_close(together[1], loss(-EMBEDDINGS.flip(0), LABELS))


def test_it_and_its_usual_loss_are_those_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import CosineSimilarity

    counted = LABELS >= 0
    theirs = losses.NCALoss(softmax_scale=10, distance=CosineSimilarity())
    assert soft()(EMBEDDINGS, LABELS).item() == pytest.approx(
        theirs(EMBEDDINGS[counted], LABELS[counted]).item(), rel=1e-4
    )
    sides, rows = torch.cat([EMBEDDINGS, EMBEDDINGS.flip(1)]), torch.arange(14).repeat(2)  # queries, their documents
    of_pairs = losses.NTXentLoss(temperature=0.1)(sides, rows)
    assert soft()(sides, rows).item() == pytest.approx(of_pairs.item(), rel=1e-4)
    paired = counted & (LABELS != 3)
    evidence = reader().evidence(EMBEDDINGS[paired], LABELS[paired])
    usual = losses.SupConLoss(temperature=0.1)(EMBEDDINGS[paired], LABELS[paired])
    assert supervised_contrastive(evidence).mean().item() == pytest.approx(usual.item(), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]), seed=st.integers(0, 99), counted=st.integers(0, 12))
def test_values_and_gradients_are_finite_and_what_does_not_count_has_no_part(scale, seed, counted):
    generator = torch.Generator().manual_seed(seed)
    embeddings = (torch.randn(12, 3, generator=generator) * scale).requires_grad_()
    labels = torch.randint(3, (12,), generator=generator)
    labels[counted:] = -100
    loss = soft()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_(generator=generator)
    value = loss(embeddings, labels)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()
    assert not embeddings.grad[counted:].any()
    torch.testing.assert_close(value.detach(), loss(embeddings[:counted], labels[:counted]).detach())


def test_without_pairs_or_with_one_class_there_is_no_loss():
    embeddings = EMBEDDINGS.clone().requires_grad_()
    for labels in (torch.arange(14), torch.zeros(14, dtype=torch.long)):
        value = soft()(embeddings, labels)
        assert value == 0
        value.backward()
        assert not embeddings.grad.any()


def test_groups_have_labels_of_others_and_learning_ranks_better_than_the_usual_loss():
    groups = draw_groups(recorded(), RECALL, num_groups=64, group_size=48)
    batch = groups.__getitems__([0, 9, 33])
    for embeddings, labels, score in zip(batch["embeddings"], batch["labels"], batch["score"], strict=True):
        assert RECALL.compute(embeddings, labels) == pytest.approx(score.item(), abs=1e-6)
    assert (groups.labels != torch.as_tensor(recorded()["labels"][:])[groups.index]).any()
    surrogate = SurrogateForEmbeddings.for_metric(RECALL, trust_region=True)
    sizes = {"num_groups": 128, "num_eval_groups": 64, "group_size": 48, "num_train_epochs": 4}
    learn_surrogate(surrogate, recorded(), RECALL, **sizes, use_cpu=True)
    record = surrogate.config.record
    assert record["alignment"] > max(0.75, record["alignment_supervised_contrastive"])
    assert any(parameter.any() for parameter in surrogate.parameters())


def test_a_bootstrap_sample_is_of_queries_that_search_all_examples():
    labels = torch.arange(200) % 20
    ways = [torch.randn(200, 8) + F.one_hot(labels, 20)[:, :8] * factor for factor in (0.0, 2.0)]
    scores = bootstrapped(RECALL, ways, labels, 200)
    for way, of_way in zip(ways, scores, strict=True):
        assert of_way.mean().item() == pytest.approx(RECALL.compute(way, labels), abs=0.01)
    assert 0.01 < scores[1].std() < 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with "auto", as its script has it: the metric is a key of compute_metrics."""
    folder = tmp_path_factory.mktemp("auto")
    args = ReLossTrainingArguments(
        str(folder), max_steps=80, per_device_train_batch_size=32, per_device_eval_batch_size=100, learning_rate=0.02,
        save_steps=40, disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = ReLossTrainer(
        ContrastiveEmbedder(), args, train_dataset=tiny_rows(600), eval_dataset=tiny_rows(200, seed=1),
        metric="recall_at_k",
    )  # fmt: skip
    trainer.train()
    return trainer


def test_auto_trains_on_it(run):
    assert run.loss_report.gain is not None
    assert run.loss_report.decision is None
    assert isinstance(run.surrogate, SurrogateForEmbeddings)
    assert run.surrogate.config.architecture == "neighbours"
    assert run.surrogate.config.metric == "recall_at_k|k:1"
    assert recall(run.model, tiny_rows(300, seed=2)) > 0.75
    assert "eval_loss/surrogate" in run.evaluate()


def test_what_was_learned_is_saved_with_checkpoints(run):
    loaded = AutoSurrogate.from_pretrained(f"{run.args.output_dir}/checkpoint-80/surrogate")
    assert torch.equal(loaded(EMBEDDINGS, LABELS), run.surrogate(EMBEDDINGS, LABELS))
    config = json.loads(loaded.config.to_json_string())
    assert (config["task"], config["architecture"]) == ("embeddings", "neighbours")


def test_a_key_of_compute_metrics_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reloss.learning.time_limit.LEAST_SECONDS", 1.0)

    def compute_metrics(evaluation):
        return {"first": RECALL.compute(evaluation.predictions, evaluation.label_ids)}

    args = ReLossTrainingArguments(
        str(tmp_path), max_steps=30, per_device_train_batch_size=32, learning_rate=0.02, save_strategy="no",
        surrogate_warmup=20, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = ReLossTrainer(
        ContrastiveEmbedder(),
        args,
        train_dataset=tiny_rows(600),
        compute_metrics=compute_metrics,
        metric="first",
        guard=False,
    )
    trainer.train()
    assert trainer.metric.name == "first"
    assert trainer.surrogate is not None


@pytest.mark.parametrize("labels", [range(400), [3] * 400])
def test_auto_stays_on_the_own_loss_where_batches_have_nothing_to_compare(labels, tmp_path, caplog):
    rows = [row | {"labels": torch.tensor(label)} for row, label in zip(tiny_rows(400), labels, strict=True)]
    args = ReLossTrainingArguments(str(tmp_path), max_steps=2, save_strategy="no", disable_tqdm=True, use_cpu=True)
    trainer = ReLossTrainer(ContrastiveEmbedder(), args, train_dataset=rows, metric="recall_at_k")
    trainer.train()
    assert trainer.surrogate is None
    assert "the first batch has no examples that recall_at_k compares" in trainer.loss_report.verdict


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: soft()(EMBEDDINGS, LABELS[:4]), r"got \[14, 3\] and \[4\]"),
        (lambda: soft()(EMBEDDINGS, LABELS.float()), "class indices from 0 on"),
        (lambda: soft()(EMBEDDINGS, LABELS - 1), "got -1"),
        (lambda: soft()(EMBEDDINGS / 0, LABELS), "the model has diverged"),
        (lambda: soft()(EMBEDDINGS, LABELS, reduction="none"), "is that of a group"),
        (lambda: SurrogateForEmbeddings.for_metric("recall_at_k", loss_options={"temperature": 0}), "temperature"),
        (lambda: draw_groups(of_one_class(), RECALL, num_groups=32, group_size=8), "is 1 for all 32 groups"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def of_one_class():
    recorder = PredictionRecorder()
    recorder.add({"embeddings": torch.randn(64, 3)}, torch.zeros(64, dtype=torch.long), 0.5)
    return recorder.dataset()
