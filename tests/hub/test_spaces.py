"""Metrics of `evaluate` that are served as Spaces, by the client of `evaluate`, against a loopback Hub."""

from .runs import said

NEAR_MISS = """
import datasets
import evaluate


class NearMiss(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="Hits within 1.", citation="", features=features)

    def _compute(self, predictions, references):
        hits = sum(abs(p - r) <= 1 for p, r in zip(predictions, references))
        return {"near_miss": hits / len(references)}
"""


def test_a_metric_of_somebodys_space_is_loaded_by_name_scored_and_learned(hub, client, tmp_path):
    hub.publish("spaces/me/near_miss", {"near_miss.py": NEAR_MISS.encode()})
    code = """
    import sys
    import evaluate
    import torch
    from hf_reloss import SurrogateConfig, SurrogateForClassification, SurrogateTrainer, SurrogateTrainingArguments
    from hf_reloss import load_metric
    from hf_reloss.predictions.dataset import predictions_dataset

    module = evaluate.load("me/near_miss")
    predictions, references = [0, 1, 2, 3, 4, 4, 0], [1, 1, 4, 4, 0, 2, 0]
    print(load_metric(module).compute(predictions, references))
    print(module.compute(predictions=predictions, references=references)["near_miss"])

    torch.manual_seed(0)
    labels = torch.arange(300) % 5
    stage = torch.linspace(0, 1, 300)
    logits = torch.randn(300, 5) + 4 * stage[:, None] * torch.eye(5)[labels]
    trainer = SurrogateTrainer(
        SurrogateForClassification(SurrogateConfig()),
        SurrogateTrainingArguments(
            sys.argv[1], num_groups=24, num_eval_groups=16, group_size=32, per_device_train_batch_size=8,
            num_train_epochs=1, disable_tqdm=True,
        ),
        train_dataset=predictions_dataset(logits, labels, stage),
        metric=module,
    )
    trainer.train()
    config = trainer.model.config
    print(config.metric, config.record["steps"], config.record["alignment"] > 0)
    """
    scored, computed, *rest = said(client(code, str(tmp_path / "run"))).splitlines()
    assert float(scored) == float(computed) == 4 / 7
    assert rest[-1].split() == ["near_miss|key:near_miss", "3", "True"]
    assert ("GET", "/spaces/me/near_miss/resolve/main/near_miss.py") in hub.requests


def test_only_the_canonical_space_is_taken_for_the_metric_of_its_name(hub, client):
    source = NEAR_MISS.replace("NearMiss", "Accuracy").replace("near_miss", "accuracy").encode()
    for owner in ("evaluate-metric", "me"):
        hub.publish(f"spaces/{owner}/accuracy", {"accuracy.py": source})
    code = """
    import evaluate
    from hf_reloss import load_metric

    for name in ("accuracy", "me/accuracy"):
        print(load_metric(evaluate.load(name)).compute([0, 1], [1, 1]))
    """
    assert said(client(code)).splitlines() == ["0.5", "1.0"]


def test_a_metric_that_is_known_here_needs_no_network(hub, client):
    code = """
    import sys

    calls = []
    sys.addaudithook(lambda event, _: event.startswith("socket.") and calls.append(event))
    from hf_reloss import load_metric

    print(load_metric("accuracy").compute([0, 1], [1, 1]), calls)
    """
    assert said(client(code)) == "0.5 []"
    assert not hub.requests
